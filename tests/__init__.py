"""The tests mirror the folders; `python -m tests` runs them all."""

import os

# ONNX Runtime reads this when it is imported, and sends telemetry otherwise. Empty means on: taken for unset here.
os.environ["ORT_DISABLE_TELEMETRY"] = os.environ.get("ORT_DISABLE_TELEMETRY") or "1"
