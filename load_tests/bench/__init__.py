"""Benchmarks of throughput, latency and cost, compared with the engine alone and with other servers."""
