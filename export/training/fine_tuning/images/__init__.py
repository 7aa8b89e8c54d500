"""Training of image networks of `transformers` on labelled images of one's own: one label each, or several."""
