"""The soak: a million mixed requests while servers are restarted, files overwritten and logs left unread."""
