"""Moves KV blocks between registered memories, safely. Knows no model and no request."""
