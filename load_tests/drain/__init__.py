"""Users send requests while the server is stopped; the outcome of each is reported."""
