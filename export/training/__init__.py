"""Training runs: loops, tasks, folders of runs, and what the results are worth."""
