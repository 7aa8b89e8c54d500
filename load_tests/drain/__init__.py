"""Users at work while the server is stopped: what became of every request."""
