"""Named placement rules, one file each: what decides which worker computes a prompt."""
