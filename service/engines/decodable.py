"""The protocol of a sentence that a translation engine decodes.

Shapes: W beams, C likeliest tokens.
"""

from collections.abc import Sequence
from typing import Protocol


class Decodable(Protocol):
    """A sentence to decode: its source tokens, and a search that chooses among the likeliest next tokens."""

    @property
    def ids(self) -> list[int]:
        """Source tokens."""

    @property
    def rows(self) -> int:
        """Number of beams."""

    @property
    def num_candidates(self) -> int:
        """Number of most probable next tokens that the search needs for each row."""

    @property
    def next_ids(self) -> list[int]:
        """The newest token of each row."""

    @property
    def done(self) -> bool:
        """Whether the search has ended."""

    @property
    def reads_normalizers(self) -> bool:
        """Whether the search needs `set_log_normalizers` before each step."""

    def set_log_normalizers(self, log_normalizers: Sequence[float]) -> None:
        """Take the logarithm of the softmax denominator of each row, [W]: log probability + it = logit."""

    def advance(self, log_probabilities: Sequence[Sequence[float]], ids: Sequence[Sequence[int]]) -> list[int]:
        """Choose the next tokens.

        Args:
            log_probabilities: of the likeliest next tokens of each row, [W, C].
            ids: these tokens, [W, C].

        Returns:
            For each row of the next step, the row that it continues.
        """
