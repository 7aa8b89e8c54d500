"""Throughput, latency and cost beside the limits, and beside other servers."""
