"""Training of encoders of `transformers` on texts of one's own with labelled spans."""
