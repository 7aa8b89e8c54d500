"""Rules that say what each ONNX operator does to the rows of a batch, one module for each kind of operator."""
