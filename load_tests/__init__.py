"""Load on a running server, as any client would make it: speed, and whether the answers stay right."""
