"""What a caller may ask, and how its words become a prompt: the front doors and their rules."""
