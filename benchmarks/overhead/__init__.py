"""What the gateway costs per request and per relayed chunk, measured against a fake engine on this machine."""
