"""Training: the loop, its tasks, run folders, and the quality of results."""
