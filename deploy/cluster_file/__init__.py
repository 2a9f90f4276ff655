"""A cluster as a document: how it is spelt, checked, and what of it this machine can start."""
