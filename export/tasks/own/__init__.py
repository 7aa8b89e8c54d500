"""Training and converting on data of one's own."""
