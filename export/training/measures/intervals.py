"""Intervals of figures: Wilson's for a fraction of right answers, the bootstrap's for any other measure.

Shapes: B examples.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.training.quality import NUM_BOOTSTRAP

CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.959964  # of (1 + CONFIDENCE) / 2

Interval = tuple[float, float]  # the lower and the upper end


def wilson_interval(successes: int, total: int) -> Interval:
    """Compute the interval of a fraction at 95 % (Wilson 1927), which holds for few examples and near 0 and 1 too.

    Raises:
        ValueError: there are no examples.
    """
    if total < 1:
        raise ValueError("an interval needs at least one example")
    fraction, z2 = successes / total, NORMAL_QUANTILE**2
    centre = (fraction + z2 / (2 * total)) / (1 + z2 / total)
    half = NORMAL_QUANTILE / (1 + z2 / total) * math.sqrt(fraction * (1 - fraction) / total + z2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_intervals(
    measure: Callable[[NDArray[np.int64]], Mapping[str, float]], num_examples: int, seed: int = 0
) -> dict[str, Interval]:
    """Compute 95 % percentile intervals of measures over resampled examples (Efron 1979).

    Args:
        measure: returns the measures, by name, of the examples with the given numbers, int64 [B], some of them several
            times; NaN where a measure is not defined for them.
        num_examples: B.
        seed: the seed of the resampling; equal seeds give equal intervals.

    Returns:
        The interval of each measure. A measure that most resamples leave undefined has NaN. A measure that is equal in
        every resample, such as an F1 of 1, has an interval of no width: few examples do not show in it.
    """
    rng = np.random.default_rng(seed)
    resampled = [measure(rng.integers(num_examples, size=num_examples)) for _ in range(NUM_BOOTSTRAP)]
    ends = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    intervals = {}
    for name in resampled[0]:
        values = np.array([each[name] for each in resampled])
        defined = values[~np.isnan(values)]
        low, high = np.quantile(defined, ends) if 2 * len(defined) > len(values) else (math.nan, math.nan)
        intervals[name] = (float(low), float(high))
    return intervals


def json_able(value: Any) -> Any:
    """Return values for JSON: NaN, which JSON lacks, becomes None, and tuples become lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: json_able(each) for name, each in value.items()}
    return [json_able(each) for each in value] if isinstance(value, list | tuple) else value
