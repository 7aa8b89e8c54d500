"""Precisions and the minimum number of compared inputs, for conversions of every task."""

from typing import Literal

Precision = Literal["float32", "float16", "int8"]
MIN_COMPARED = 500


class ConversionRefused(ValueError):
    """The converted model is not the model that was trained; nothing was written."""
