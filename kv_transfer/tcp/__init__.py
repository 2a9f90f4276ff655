"""KV over TCP streams of our own."""
