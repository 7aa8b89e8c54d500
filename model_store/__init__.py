"""The folders of artifacts that `export` writes and `service` reads, and the one reader and writer for both."""
