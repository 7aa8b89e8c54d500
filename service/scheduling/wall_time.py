"""Ratio of wall time to the cost of engine work, which is measured in CPU time.

Deadlines are wall time. On a machine that is shared with others, or under a CPU quota, a call of 10 ms of CPU time may
take 40 ms, and between two calls the event loop needs its share as well.
"""

import math
from dataclasses import dataclass

# Memories of the two means: turns further back count for little. The greater mean is taken: the short one notices
# quickly that the machine has become slower, the long one is not fooled by a quiet moment.
MEMORIES_S = (0.2, 1.0)
# Before anything is measured both clocks are assumed to agree; the assumption weighs as much as this engine time.
PRIOR_S = 0.005


class WallTimeFactor:
    """Wall seconds for each second of expected engine time, a mean over recent turns weighted by their length.

    A turn lasts from the moment that an engine is given a call until it could be given the next one.
    """

    def __init__(self) -> None:
        self._means = [_Mean(memory_s) for memory_s in MEMORIES_S]

    @property
    def value(self) -> float:
        """The wall time of one second of expected engine time."""
        return max([mean.wall_s / mean.expected_s for mean in self._means])

    def record(self, wall_s: float, expected_s: float) -> None:
        """Take in one turn and its expected engine time, 0 where it is unknown."""
        if expected_s <= 0.0:
            return
        for mean in self._means:
            kept = math.exp(-wall_s / mean.memory_s)
            mean.wall_s = kept * mean.wall_s + wall_s
            mean.expected_s = kept * mean.expected_s + expected_s


@dataclass(slots=True)
class _Mean:
    """Exponentially decaying sums of recent turns."""

    memory_s: float
    wall_s: float = PRIOR_S
    expected_s: float = PRIOR_S
