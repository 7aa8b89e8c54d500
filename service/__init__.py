"""Everything that answers requests; starts without torch installed."""
