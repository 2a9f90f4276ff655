"""Sets how many workers of each role there should be: a pure function of what routers observe."""
