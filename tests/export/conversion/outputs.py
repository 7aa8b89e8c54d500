"""The outputs of a converted graph, for tests that compare them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.conversion.comparison.classifier import onnx_outputs
from export.conversion.model_source import Source


def onnx_logits(source: Source, path: Path, inputs: Sequence[Any]) -> NDArray[np.float32]:
    """Compute the graph's logits in padded batches; float32 [B, C]."""
    return np.stack(onnx_outputs(source, path, inputs))
