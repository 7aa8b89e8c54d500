"""Outcomes of the requests, counted in a file, so that an interrupted soak can continue."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

# right        the expected answer, or the expected error
# moved        an int8 answer that says something else, within the recorded batch sensitivity
# cancelled    cancelled by the client on purpose, or ended by a deadline that was set to be short
# overloaded   refused with 429 or RESOURCE_EXHAUSTED before any work
# wrong        another answer, or another error
# lost         neither answer nor error
# unexpected   500, INTERNAL, or another unexplained failure of the server
Outcome = Literal["right", "moved", "cancelled", "overloaded", "wrong", "lost", "unexpected"]
FAILURES: tuple[Outcome, ...] = ("wrong", "lost", "unexpected")
MAX_EXAMPLES = 20


@dataclass
class Tally:
    """All counts of a soak."""

    total: int
    seed: int
    done: int = 0
    wall_s: float = 0.0
    sessions: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # kind of request to outcomes
    retries: dict[str, int] = field(default_factory=dict)  # by reason
    faults: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)  # of failures
    memory_mib: list[tuple[int, float]] = field(default_factory=list)  # requests done, resident memory of a server

    @classmethod
    def read(cls, path: Path, total: int, seed: int) -> "Tally":
        """Read the tally of an interrupted soak, or create a new one.

        Raises:
            ValueError: the file is of a soak of another size or seed.
        """
        if not path.is_file():
            return cls(total, seed)
        tally = cls(**json.loads(path.read_text()))
        if (tally.total, tally.seed) != (total, seed):
            raise ValueError(
                f"{path} is of a soak of {tally.total:,} requests with seed {tally.seed}, not of {total:,} with seed"
                f" {seed}; --fresh begins anew"
            )
        return tally

    def write(self, path: Path) -> None:
        """Replace the file as a whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(asdict(self), indent=1))
        unfinished.replace(path)

    def count(self, kind: str, outcome: Outcome, why: str = "") -> None:
        """Count one finished request."""
        self.done += 1
        outcomes = self.counts.setdefault(kind, {})
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if outcome in FAILURES and len(self.examples) < MAX_EXAMPLES:
            self.examples.append(f"{time.strftime('%H:%M:%S')} {kind}: {outcome}: {why}"[:500])

    def sum_of(self, outcome: str) -> int:
        """Return the number of requests of all kinds with this outcome."""
        return sum(outcomes.get(outcome, 0) for outcomes in self.counts.values())

    @property
    def failures(self) -> int:
        """Number of requests with an outcome that must not be."""
        return sum(self.sum_of(outcome) for outcome in FAILURES)

    def add(self, counts: dict[str, int], name: str) -> None:
        """Count a retry or a fault by its name."""
        counts[name] = counts.get(name, 0) + 1

    def summary(self) -> dict[str, Any]:
        """Format the figures as one line for the terminal."""
        outcomes = {name: self.sum_of(name) for name in ("moved", "cancelled", "overloaded", *FAILURES)}
        return {name: number for name, number in outcomes.items() if number or name in FAILURES}
