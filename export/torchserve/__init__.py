"""The second runtime: a model folder as a TorchServe archive, the handler that answers there, and how it is started."""
