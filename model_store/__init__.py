"""Model folders: the reader and writer that `export` and `service` share."""
