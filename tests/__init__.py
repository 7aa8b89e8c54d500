"""Tests in the same folders as the modules that they test; `python -m tests` runs them all."""

import os

# ONNX Runtime reads this when it is imported, and sends telemetry otherwise. Empty means on: taken for unset here.
os.environ["ORT_DISABLE_TELEMETRY"] = os.environ.get("ORT_DISABLE_TELEMETRY") or "1"

# PyTorch reads this when it is imported. The networks of the tests are too small for a second thread: threads that wait
# for each other at every product cost more than they compute, most of all on a busy machine. ONNX Runtime does not read
# it: servers that are started here have the threads that their options give them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Options of a server come from the test that starts it, never from the caller's shell or from `make`.
for name in [name for name in os.environ if name.startswith("HEED_") and name != "HEED_DATASETS"]:
    del os.environ[name]
