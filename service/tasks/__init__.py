"""Preprocessing and postprocessing of each task: pure functions without I/O, threads or sessions."""
