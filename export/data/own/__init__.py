"""Data sets of one's own: files in common formats become splits that are checked, recorded and can be rebuilt."""
