"""Packs what of a cluster may be given to others: chosen, then searched for secrets."""
