"""Sentences that are decoded, and the messages between the continuous batcher and its engine threads."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

from service.scheduling.admission import ItemResult, Request


class Sentence(Protocol):
    """One sentence that is decoded, as far as the batcher needs to know it."""

    @property
    def rows(self) -> int:
        """Rows of the running batch that it takes."""

    @property
    def length(self) -> int:
        """Tokens of its source."""

    @property
    def max_steps(self) -> int:
        """Steps after which its decoding is over in any case."""

    @property
    def done(self) -> bool:
        """Whether its decoding is over."""

    @property
    def so_far(self) -> list[int]:
        """Its tokens up to now."""

    def restart(self) -> None:
        """Begin again, as if no step had been made."""


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
    cancelled: bool = False  # set in the event loop, seen by the engine thread before its next step
    # Written by the engine thread:
    joined_s: float = 0.0
    steps: int = 0
    step_rows: int = 0  # rows of all the steps it took part in


class Ended(NamedTuple):
    """A sentence that has left its running batch: its result, or None when nobody waits for it any more."""

    entry: Entry
    outcome: ItemResult | Exception | None


class Signal(Enum):
    """Messages to an engine thread besides its sentences."""

    WAKE = 1  # check for cancelled sentences, and whether to pause
    CLOSE = 2


class Step(NamedTuple):
    """A step that was made."""

    rows: int
    seconds: float
    turn_s: float  # wall time since the step before, or since the thread had something to do again


class Progress(NamedTuple):
    """The report of an engine thread to the event loop after a step."""

    ended: list[Ended]
    streamed: list[tuple[Entry, list[int]]]
    steps: list[Step]  # since the last report
    dead: str | None
