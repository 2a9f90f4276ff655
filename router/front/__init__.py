"""Takes what a caller may ask and makes its words a prompt: the front doors and their rules."""
