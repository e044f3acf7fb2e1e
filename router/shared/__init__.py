"""What several gateways share through Redis: the budgets of replicas, and what was said about them."""
