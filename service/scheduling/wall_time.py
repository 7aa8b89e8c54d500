"""Ratio of wall time to the cost of engine work, which is measured in CPU time.

Deadlines are wall time. On a machine that is shared with others, or under a CPU quota, a call of 10 ms of CPU time may
take 40 ms, and between two calls the event loop needs its share as well.
"""

import math
from dataclasses import dataclass

# Time constants of the two running means; the larger mean is used. The short one reacts quickly when the machine
# becomes slower, and the long one is not misled by a quiet moment.
MEMORIES_S = (0.2, 1.0)
# Initially, both clocks are assumed to agree; this assumption has the weight of this much engine time.
PRIOR_S = 0.005


class WallTimeFactor:
    """Wall seconds for each second of expected engine time, a mean over recent turns weighted by their length.

    A turn is the time from giving an engine a call until it can be given the next one.
    """

    def __init__(self) -> None:
        self._means = [_Mean(memory_s) for memory_s in MEMORIES_S]

    @property
    def value(self) -> float:
        """The wall time of one second of expected engine time."""
        return max([mean.wall_s / mean.expected_s for mean in self._means])

    def record(self, wall_s: float, expected_s: float) -> None:
        """Record one turn and its expected engine time, which is 0 if unknown."""
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
