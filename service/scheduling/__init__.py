"""When a request is computed: admission, batches, and idle moments."""
