"""Pure functions between what a client sends and what an engine computes: no I/O, no threads, no sessions."""
