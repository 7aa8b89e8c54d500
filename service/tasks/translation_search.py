"""The search for the best translation: greedy or beam search, as a state machine without an engine.

    decoder step ──> log probabilities of the likeliest next tokens ──> Search.advance ──> which rows go on ──> ...

The caller feeds in the next tokens' probabilities, from ONNX Runtime or from PyTorch, and learns which rows to compute
next. Training, conversion and service therefore search alike.

Shapes: R rows of a decoder step, V tokens of the vocabulary, W beams of one sentence, N likeliest next tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

NEVER = float("-inf")
MAX_BEAMS = 16
MAX_LENGTH_PENALTY = 10.0
EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How a translation is searched for.

    `num_beams` 1 is greedy search. `length_penalty` is the power of the length by which a hypothesis' log probability
    is divided: 0 prefers short ones, 1 compares means, more prefers long ones (names as in Hugging Face's generation).
    With `num_beams` translations found, the search ends at once (`early_stopping` true), when no running one of its
    present length would be better than the worst of them (false), or when none of any length would ("never").
    """

    max_new_tokens: int
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = True


@dataclass(frozen=True, kw_only=True)
class SearchDefaults:
    """How a model searches where a client does not say otherwise: its `generation_config.json`.

    Without `max_new_tokens` a search that does not end by itself ends at `longest_translation`.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = True
    max_new_tokens: int | None = None


class SearchRequest(NamedTuple):
    """What a client may ask of the search; None leaves the choice to the model.

    A `bounded` one ends at `longest_translation` whatever the model's own maximum is.
    """

    num_beams: int | None = None
    max_new_tokens: int | None = None
    length_penalty: float | None = None
    bounded: bool = False


DEFAULT_SEARCH, MODEL_DEFAULTS = SearchRequest(), SearchDefaults()
# The searches that translation models are compared and golden translations are made by.
GOLDEN_SEARCHES = {
    "greedy": SearchRequest(num_beams=1, bounded=True),
    "beam 4": SearchRequest(num_beams=4, bounded=True),
}


class Hypothesis(NamedTuple):
    """A translation: its tokens without the end of the sentence, and its score after the length penalty."""

    ids: list[int]
    score: float


class Search:
    """One sentence's way to its translation: greedy or beam search.

    After Sutskever et al. 2014 (arXiv 1409.3215, section 3.2), with the rule that most translation systems share: a
    hypothesis that ends among the best `num_beams` candidates is kept, the search is over when there are `num_beams` of
    them and `early_stopping` allows it, and the best one by score is the answer.
    """

    def __init__(self, options: SearchOptions, *, bos_id: int, eos_id: int) -> None:
        """Begin with the empty translation, in all rows."""
        self.options, self._eos_id = options, eos_id
        # All beams begin alike, so at first all candidates come from one row.
        self._sums = [0.0] + [NEVER] * (options.num_beams - 1)
        self._ids: list[list[int]] = [[] for _ in range(options.num_beams)]
        self._last = [bos_id] * options.num_beams
        self._likeliest = 0
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
        scores = [total + each for total, row in zip(self._sums, log_probabilities, strict=True) for each in row]
        best = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[: self.num_candidates]
        going_on: list[tuple[int, float, int]] = []  # row that is continued, its new sum, its new token
        for rank, number in enumerate(best):
            row, place = divmod(number, len(log_probabilities[0]))
            token = ids[row][place]
            if token == self._eos_id:
                # Kept only where it would have had a row; else a short, unlikely ending would count as found.
                if rank < self.options.num_beams:
                    self._finish(self._ids[row], scores[number], self.steps)
            elif len(going_on) < self.options.num_beams:
                going_on.append((row, scores[number], token))
        parents = self._take_rows(going_on)
        if len(self._finished) >= self.options.num_beams and not self._may_improve():
            self.done = True
        elif self.steps >= self.options.max_new_tokens:
            for unfinished, total in zip(self._ids, self._sums, strict=True):
                self._finish(unfinished, total, self.steps)
            self.done = True
        return parents

    def _may_improve(self) -> bool:
        """Keep the best `num_beams` translations found; whether a running one may still take a place among them."""
        options = self.options
        self._finished = sorted(self._finished, key=lambda found: found.score, reverse=True)[: options.num_beams]
        if options.early_stopping is True:
            return False
        to_the_end = options.early_stopping == "never" and options.length_penalty > 0
        length = options.max_new_tokens if to_the_end else self.steps
        best_score: float = self._sums[self._likeliest] / length**options.length_penalty
        return best_score > self._finished[-1].score

    def _take_rows(self, going_on: list[tuple[int, float, int]]) -> list[int]:
        """Give each hypothesis a row, likeliest first: its parent's where that is free, for then nothing is moved."""
        parents, before = [-1] * len(going_on), self._ids
        self._ids, self._sums, self._last = [[]] * len(going_on), [NEVER] * len(going_on), [0] * len(going_on)
        free = set(range(len(going_on))) - {parent for parent, _, _ in going_on}
        for rank, (parent, total, token) in enumerate(going_on):
            row = parent if parents[parent] < 0 else free.pop()
            parents[row], self._sums[row], self._last[row] = parent, total, token
            self._ids[row] = [*before[parent], token]
            if rank == 0:
                self._likeliest = row
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
        return self._ids[self._likeliest]

    def best(self) -> Hypothesis:
        """The translation; to be asked for once the search is done."""
        return max(self._finished, key=lambda hypothesis: hypothesis.score)


class Sentence:
    """One text on its way: its source, and its search. An item of the in-flight batcher."""

    def __init__(self, ids: list[int], options: SearchOptions, *, bos_id: int, eos_id: int, truncated: bool) -> None:
        self.ids, self.options, self.truncated = ids, options, truncated
        self._bos_id, self._eos_id = bos_id, eos_id
        self.rows, self.length, self.max_steps = options.num_beams, len(ids), options.max_new_tokens
        self.num_candidates = num_candidates(options.num_beams)
        self.restart()

    def restart(self) -> None:
        """Begin the search again."""
        self.search = Search(self.options, bos_id=self._bos_id, eos_id=self._eos_id)
        self.advance = self.search.advance

    @property
    def next_ids(self) -> list[int]:
        """The newest token of each row."""
        return self.search.next_ids

    @property
    def done(self) -> bool:
        """Whether the search is over."""
        return self.search.done

    @property
    def so_far(self) -> list[int]:
        """Tokens of the likeliest row."""
        return self.search.so_far


class Forced:
    """A given translation of a text, to learn how likely each of its tokens is. An item of the in-flight batcher.

    No search: each step takes the next token of the translation, whatever the model would have chosen. For its log
    probability the decoder step is asked for as many of the likeliest tokens as there are, so that it is always among
    them; sorting them all makes such a step several times as dear as one of a search.
    """

    rows = 1

    def __init__(self, ids: list[int], target_ids: Sequence[int], *, bos_id: int, num_candidates: int) -> None:
        self.ids, self.target_ids, self.num_candidates = ids, list(target_ids), num_candidates
        self.length, self.max_steps = len(ids), len(self.target_ids)
        self._bos_id = bos_id
        self.restart()

    def restart(self) -> None:
        """Forget what was learnt."""
        self.log_probabilities: list[float] = []

    @property
    def next_ids(self) -> list[int]:
        """The newest token."""
        step = len(self.log_probabilities)
        return [self.target_ids[step - 1] if step else self._bos_id]

    @property
    def done(self) -> bool:
        """Whether the log probability of every token is known."""
        return len(self.log_probabilities) == len(self.target_ids)

    @property
    def so_far(self) -> list[int]:
        """The tokens whose log probability is known."""
        return self.target_ids[: len(self.log_probabilities)]

    def advance(self, log_probabilities: Sequence[Sequence[float]], ids: Sequence[Sequence[int]]) -> list[int]:
        """As `Search.advance`, of a single row."""
        (place,) = np.flatnonzero(np.asarray(ids[0]) == self.target_ids[len(self.log_probabilities)])
        self.log_probabilities.append(float(log_probabilities[0][int(place)]))
        return [0]


def longest_translation(source_tokens: int, max_tokens: int) -> int:
    """Where a search ends that does not end by itself: translations are seldom more than twice as long."""
    return min(max_tokens, 2 * source_tokens + 10)


def num_candidates(num_beams: int) -> int:
    """Likeliest next tokens of a row that a search needs."""
    return 1 if num_beams == 1 else 2 * num_beams


def top_k_log_probs(logits_RV: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `count` likeliest tokens of each row, likeliest first: log probabilities and ids, [R, count]."""
    highest_R1 = logits_RV.max(axis=1, keepdims=True)
    normaliser_R1 = highest_R1 + np.log(np.exp(logits_RV - highest_R1).sum(axis=1, keepdims=True))
    ids_RN = np.argpartition(-logits_RV, count - 1, axis=1)[:, :count]
    found_RN = np.take_along_axis(logits_RV, ids_RN, axis=1)
    order_RN = np.argsort(-found_RN, axis=1, kind="stable")
    ids_RN = np.take_along_axis(ids_RN, order_RN, axis=1)
    return np.take_along_axis(logits_RV, ids_RN, axis=1) - normaliser_R1, ids_RN
