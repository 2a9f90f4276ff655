"""Holds what separate processes must agree on. No torch."""
