"""Messages between the continuous batcher and its engine threads, and the protocol of their sentences."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

from service.scheduling.admission import ItemResult, Request


class Sentence(Protocol):
    """The properties of a sentence that the continuous batcher uses."""

    @property
    def rows(self) -> int:
        """Number of rows that the sentence takes in a running batch."""

    @property
    def length(self) -> int:
        """Number of source tokens."""

    @property
    def max_steps(self) -> int:
        """Largest number of decoder steps."""

    @property
    def done(self) -> bool:
        """Whether decoding has ended."""

    @property
    def so_far(self) -> list[int]:
        """The tokens of the translation so far."""

    def restart(self) -> None:
        """Discard all decoded tokens and start again."""


@dataclass(slots=True, eq=False)
class Entry:
    """One sentence in the queue or in a running batch."""

    request: Request
    index: int
    sentence: Any
    rows: int
    expected_s: float
    enqueued_s: float
    on_tokens: Callable[[int, list[int]], None] | None
    cancelled: bool = False  # set in the event loop, read by the engine thread before its next step
    # Written by the engine thread:
    joined_s: float = 0.0
    steps: int = 0
    step_rows: int = 0  # sum of the rows of all its steps


class Ended(NamedTuple):
    """A sentence that has left its running batch, with its result or None if its caller has left."""

    entry: Entry
    outcome: ItemResult | Exception | None


class Signal(Enum):
    """Messages to an engine thread other than sentences."""

    WAKE = 1  # check for cancelled sentences, and whether to pause
    CLOSE = 2


class Step(NamedTuple):
    """Figures of one decoder step."""

    rows: int
    seconds: float
    turn_s: float  # wall time since the previous step, or since the thread had work again


class Progress(NamedTuple):
    """The report of an engine thread to the event loop after a step."""

    ended: list[Ended]
    streamed: list[tuple[Entry, list[int]]]
    steps: list[Step]  # steps since the last report
    dead: str | None
