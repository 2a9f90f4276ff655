"""A policy as a document: how it is spelt, read, checked, compared and imported."""
