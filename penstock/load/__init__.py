"""Load on a cluster, and what came of it. Needs no more than the SDK does."""
