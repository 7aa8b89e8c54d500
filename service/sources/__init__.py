"""From what a command line names (checkpoint, hub id, ONNX file, model folder) to a model store that can be served."""
