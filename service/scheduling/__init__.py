"""Decides when each request is computed: admission, batching, low priority, idle cores."""
