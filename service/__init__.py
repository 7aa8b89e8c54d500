"""The server: answers requests; needs no torch."""

import os

# ONNX Runtime reads this variable when it is imported, and sends telemetry unless it is set. Empty counts as unset.
os.environ["ORT_DISABLE_TELEMETRY"] = os.environ.get("ORT_DISABLE_TELEMETRY") or "1"
