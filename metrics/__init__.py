"""How it went: every instrument declared once on an injected registry; nothing here is global."""
