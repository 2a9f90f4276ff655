"""A small real model that ships with Penstock, and everything that made it."""
