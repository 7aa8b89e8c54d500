"""Clients that others wrote, against a real server; run in a process of their own (see tests/__main__.py)."""
