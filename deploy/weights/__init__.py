"""Brings the weights of a model to a machine, once."""
