"""Tests in the same folders as the modules that they test; `python -m tests` runs them all."""

import os

# ONNX Runtime reads this at import and sends telemetry unless it is set. An empty value counts as unset.
os.environ["ORT_DISABLE_TELEMETRY"] = os.environ.get("ORT_DISABLE_TELEMETRY") or "1"

# PyTorch reads this at import. The networks of the tests are too small for a second thread: synchronising the threads
# after every product costs more than it saves, most of all on a busy machine. ONNX Runtime does not read
# it, so servers have the threads of their options.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A server's options come only from its test, never from the shell or from `make`.
for name in [name for name in os.environ if name.startswith("HEED_") and name != "HEED_DATASETS"]:
    del os.environ[name]
