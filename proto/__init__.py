"""The wire contracts, and beside them the code that `python -m proto.generate` makes of them."""
