"""Programs of clients of others, which run in environments of their own, and the exact versions of these."""
