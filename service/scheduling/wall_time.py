"""How long the engines' work takes by the clock on the wall, where its cost is known in seconds of CPU time.

Deadlines are wall time. On a machine that is shared with others, or under a CPU quota, a call of 10 ms of CPU time may
take 40 ms, and between two calls the event loop needs its share as well.
"""

import math
from dataclasses import dataclass

# Turns that lie further back than about this many seconds count for little. The greater of the two means is taken: the
# short one notices quickly that the machine has become slower, the long one is not fooled by a quiet moment.
MEMORIES_S = (0.2, 1.0)
# Weight of the assumption that both clocks go alike, before anything was measured: so many seconds of engine time.
PRIOR_S = 0.005


class WallTimeFactor:
    """Wall seconds for each second of expected engine time, a mean over recent turns weighted by their length.

    A turn lasts from the moment that an engine is given a call until it could be given the next one.
    """

    def __init__(self) -> None:
        self._means = [_Mean(memory_s) for memory_s in MEMORIES_S]

    @property
    def value(self) -> float:
        """Multiply expected engine time by this to get wall time."""
        return max([mean.wall_s / mean.expected_s for mean in self._means])

    def record(self, wall_s: float, expected_s: float) -> None:
        """Take in one turn: how long it lasted, and how long it was expected to; 0 where nothing was expected."""
        if expected_s <= 0.0:
            return
        for mean in self._means:
            kept = math.exp(-wall_s / mean.memory_s)
            mean.wall_s = kept * mean.wall_s + wall_s
            mean.expected_s = kept * mean.expected_s + expected_s


@dataclass(slots=True)
class _Mean:
    """Sums of recent turns, in which each counts for less the further back it lies."""

    memory_s: float
    wall_s: float = PRIOR_S
    expected_s: float = PRIOR_S
