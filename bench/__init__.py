"""Load generators and measurements; nothing imports them."""
