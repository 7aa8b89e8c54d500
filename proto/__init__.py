"""The wire contracts as .proto files, and the Python code that `python -m proto.generate` makes from them."""
