"""Policies in force, before, on trial and in the shadow: the values that requests are placed by."""
