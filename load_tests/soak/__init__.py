"""The soak: mixed requests by the million while servers are rolled, files overwritten and logs left unread."""
