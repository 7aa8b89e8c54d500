"""Parallel texts."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ParallelTexts:
    """One split: sentences and their translations."""

    source: list[str]
    target: list[str]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def inputs(self) -> list[str]:
        """The sentences as a client would send them."""
        return self.source

    def __add__(self, other: "ParallelTexts") -> "ParallelTexts":
        return ParallelTexts(self.source + other.source, self.target + other.target)


@dataclass(frozen=True)
class TranslationData:
    """A data set for translation; `test` has a split for each of its sources, by name.

    `document` records a data set of one's own, so that `rebuild_pairs` (export/data/own/translation.py) reads the same
    splits again.
    """

    name: str
    licence: str
    source_language: str
    target_language: str
    train: ParallelTexts
    validation: ParallelTexts
    test: dict[str, ParallelTexts]
    document: dict[str, Any] | None = None

    @property
    def reported(self) -> dict[str, ParallelTexts]:
        """The splits that figures are reported on: the test splits, if there are any."""
        return self.test or {"validation": self.validation}
