"""The fleet live: what viewers are told once a second, and the page that shows it."""
