"""Studies: a grid of merges, what was measured of each, and which one is chosen."""
