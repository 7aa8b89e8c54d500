"""What each ONNX operator does to the rows of a batch: one rule an operator, by kinds of operators."""
