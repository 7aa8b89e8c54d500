"""Tables of the model families that can be loaded."""
