"""Programs that measure Penstock; each answers one question (README.md). Nothing in the gateway imports them."""
