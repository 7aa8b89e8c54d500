"""Text to text: what happens around the graphs of a translation model, and the search for the best translation.

    text ── tokenizer ──> ids ──> encoder ──> ┌─> decoder step ──> likeliest next tokens ─┐ ── tokenizer ──> text
                                              └──── Search.advance: which rows go on <────┘

The search is a state machine without an engine: whoever has the next tokens' probabilities, from ONNX Runtime or from
PyTorch, feeds them in and learns which rows to compute next. So training, conversion and service search alike.

Shapes: R rows of a decoder step, W beams of one sentence, N likeliest next tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NEVER = float("-inf")


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How a translation is searched for.

    `num_beams` 1 is greedy search. `length_penalty` is the power of the length by which a hypothesis' log probability
    is divided: 0 prefers short ones, 1 compares means, more prefers long ones (names as in Hugging Face's generation).
    """

    max_new_tokens: int
    num_beams: int = 1
    length_penalty: float = 1.0


class Hypothesis(NamedTuple):
    """A translation: its tokens without the end of the sentence, and its score after the length penalty."""

    ids: list[int]
    score: float


class Search:
    """One sentence's way to its translation: greedy or beam search.

    After Sutskever et al. 2014 (arXiv 1409.3215, section 3.2), with the rule that most translation systems share: a
    hypothesis that ends among the best `num_beams` candidates is kept, the search is over when there are `num_beams` of
    them, and the best one by score is the answer.
    """

    def __init__(self, options: SearchOptions, *, bos_id: int, eos_id: int) -> None:
        """Begin with the empty translation, in all rows."""
        self.options, self._eos_id = options, eos_id
        # All beams begin alike, so at first all candidates come from one row.
        self._sums = [0.0] + [NEVER] * (options.num_beams - 1)
        self._ids: list[list[int]] = [[] for _ in range(options.num_beams)]
        self._last = [bos_id] * options.num_beams
        self._finished: list[Hypothesis] = []
        self.steps = 0
        self.done = False

    @property
    def num_candidates(self) -> int:
        """Likeliest next tokens of a row that must be known: half of them may be the end of the sentence."""
        return num_candidates(self.options.num_beams)

    @property
    def next_ids(self) -> list[int]:
        """The newest token of each row, which the next decoder step takes; [W]."""
        return self._last

    def advance(self, log_probabilities: Sequence[Sequence[float]], ids: Sequence[Sequence[int]]) -> list[int]:
        """Take in the likeliest next tokens of each row, likeliest first.

        Args:
            log_probabilities: [W, N], N at least `num_candidates`.
            ids: the tokens they belong to, [W, N].

        Returns:
            for each row of the next step, the row of this one that it continues; [W].
        """
        self.steps += 1
        if self.options.num_beams == 1:
            return self._advance_greedily(log_probabilities[0][0], ids[0][0])
        candidates = sorted(
            (
                (-(total + log_probabilities[row][place]), row, place)
                for row, total in enumerate(self._sums)
                if total > NEVER
                for place in range(self.num_candidates)
            ),
        )[: self.num_candidates]
        parents: list[int] = []
        sums: list[float] = []
        last: list[int] = []
        for rank, (negative, row, place) in enumerate(candidates):
            token = int(ids[row][place])
            if token == self._eos_id:
                # Kept only where it would have had a row; else a short, unlikely ending would count as found.
                if rank < self.options.num_beams:
                    self._finish(self._ids[row], -negative, self.steps)
            elif len(parents) < self.options.num_beams:
                parents.append(row)
                sums.append(-negative)
                last.append(token)
        self._ids = [[*self._ids[parent], token] for parent, token in zip(parents, last, strict=True)]
        self._sums, self._last = sums, last
        if len(self._finished) >= self.options.num_beams:
            self.done = True
        elif self.steps >= self.options.max_new_tokens:
            for unfinished, total in zip(self._ids, self._sums, strict=True):
                self._finish(unfinished, total, self.steps)
            self.done = True
        return parents

    def _advance_greedily(self, log_probability: float, token: int) -> list[int]:
        self._sums[0] += log_probability
        if token != self._eos_id:
            self._ids[0].append(int(token))
            self._last = [int(token)]
        if token == self._eos_id or self.steps >= self.options.max_new_tokens:
            self._finish(self._ids[0], self._sums[0], self.steps)
            self.done = True
        return [0]

    def _finish(self, ids: list[int], total: float, length: int) -> None:
        self._finished.append(Hypothesis(ids, float(total) / length**self.options.length_penalty))

    @property
    def so_far(self) -> list[int]:
        """The tokens of the likeliest row; under greedy search they will not change any more."""
        return self._ids[0]

    def best(self) -> Hypothesis:
        """The translation; to be asked for once the search is done."""
        return max(self._finished, key=lambda hypothesis: hypothesis.score)


def num_candidates(num_beams: int) -> int:
    """Likeliest next tokens of a row that a search needs."""
    return 1 if num_beams == 1 else 2 * num_beams


def likeliest(logits_RV: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `count` likeliest tokens of each row, likeliest first: log probabilities and ids, [R, count]."""
    highest_R1 = logits_RV.max(axis=1, keepdims=True)
    normaliser_R1 = highest_R1 + np.log(np.exp(logits_RV - highest_R1).sum(axis=1, keepdims=True))
    ids_RN = np.argpartition(-logits_RV, count - 1, axis=1)[:, :count]
    found_RN = np.take_along_axis(logits_RV, ids_RN, axis=1)
    order_RN = np.argsort(-found_RN, axis=1, kind="stable")
    ids_RN = np.take_along_axis(ids_RN, order_RN, axis=1)
    return np.take_along_axis(logits_RV, ids_RN, axis=1) - normaliser_R1, ids_RN
