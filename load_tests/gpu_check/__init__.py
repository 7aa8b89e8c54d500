"""A check of a GPU in one command: parity, throughput, utilisation."""
