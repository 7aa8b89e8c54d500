"""Data sets that recipes name: a description each (`*.toml`), and how their splits are read."""
