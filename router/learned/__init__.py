"""What a router learns from the requests that it placed."""
