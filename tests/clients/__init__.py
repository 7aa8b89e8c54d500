"""Third-party clients against a real server; run in a process of their own (see tests/__main__.py)."""
