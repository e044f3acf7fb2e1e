"""What runs beside an engine on a machine that may be taken away: hears the cloud's notices and tells the gateways (docs/spot-agent.md)."""
