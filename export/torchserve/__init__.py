"""The second runtime: packs model folders for TorchServe, handles its requests, and starts it."""
