"""Learns from the requests that a router placed."""
