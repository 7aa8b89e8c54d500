"""The gate of a build: all tasks at once for a minute, judged by slo.toml."""
