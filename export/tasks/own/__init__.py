"""Training and conversion on data of one's own, for each task that is trained here."""
