"""Load tests of a running server: speed, and whether the answers stay right."""

import os

# ONNX Runtime reads this at import and sends telemetry unless it is set. An empty value counts as unset.
os.environ["ORT_DISABLE_TELEMETRY"] = os.environ.get("ORT_DISABLE_TELEMETRY") or "1"
