"""From data to a model folder: everything that needs torch."""

import os

# ONNX Runtime reads this at import and sends telemetry unless it is set. An empty value counts as unset.
os.environ["ORT_DISABLE_TELEMETRY"] = os.environ.get("ORT_DISABLE_TELEMETRY") or "1"
