"""Clients of the HTTP door: OpenAI's own, unmodified, and plain sockets."""
