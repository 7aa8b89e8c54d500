"""The search for the best translation: greedy or beam search, as a state machine without an engine.

    decoder step ──> log probabilities of the likeliest next tokens ──> Search.advance ──> which rows go on ──> ...

The caller feeds in the next tokens' probabilities, from ONNX Runtime or from PyTorch, and learns which rows to compute
next. Training, conversion and service therefore search alike.

Shapes: R rows of a decoder step, V tokens of the vocabulary, W beams of one sentence, N likeliest next tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.tasks.decoding.constraints import MAX_NGRAM_SIZE, MAX_REPETITION_PENALTY, NO_CONSTRAINTS, Constraints
from service.tasks.task import NO_GENERATION_OPTIONS, PrepareOptions

NEVER = float("-inf")
MAX_BEAMS = 16
MAX_LENGTH_PENALTY = 10.0
EarlyStopping = bool | Literal["never"]
CONSTRAINTS_OF_REQUESTS = ("min_new_tokens", "no_repeat_ngram_size", "repetition_penalty")


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Settings of a search, with the names of Hugging Face's generation.

    Attributes:
        max_new_tokens: length at which the search ends in any case.
        num_beams: number of beams; 1 is greedy search.
        length_penalty: a hypothesis' log probability is divided by its length to this power. 0 prefers short
            hypotheses, 1 compares means, and more prefers long ones.
        early_stopping: when the search ends once `num_beams` translations are found: at once (true), when no running
            hypothesis of the present length would be better than the worst of them (false), or when none of any length
            would be ("never").
        constraints: rules on the tokens that may follow; None for a search without any, which is faster.
    """

    max_new_tokens: int
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = True
    constraints: Constraints | None = None


@dataclass(frozen=True, kw_only=True)
class SearchDefaults:
    """A model's search settings, from its `generation_config.json`, for requests that give none.

    Without `max_new_tokens`, a search ends at `longest_translation` at the latest.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = True
    max_new_tokens: int | None = None
    constraints: Constraints = NO_CONSTRAINTS


class SearchRequest(NamedTuple):
    """A client's search settings; None leaves a setting to the model.

    With `bounded`, the search ends at `longest_translation` whatever the model's own maximum is, and has no constraint
    but the forced first token: what is compared is the network, not the rules of a search.
    """

    num_beams: int | None = None
    max_new_tokens: int | None = None
    length_penalty: float | None = None
    bounded: bool = False
    min_new_tokens: int | None = None
    no_repeat_ngram_size: int | None = None
    repetition_penalty: float | None = None

    @classmethod
    def of(cls, options: PrepareOptions) -> "SearchRequest":
        """Take the search settings from the options of a request."""
        more = options.generation or NO_GENERATION_OPTIONS
        return cls(
            options.num_beams,
            options.max_new_tokens,
            options.length_penalty,
            min_new_tokens=more.min_new_tokens,
            no_repeat_ngram_size=more.no_repeat_ngram_size,
            repetition_penalty=more.repetition_penalty,
        )

    def check(self, max_tokens: int) -> None:
        """Check that all settings lie within their limits.

        Args:
            max_tokens: longest translation of the model.

        Raises:
            InvalidRequest: a parameter lies outside its limits.
        """
        beams, new_tokens, penalty = self[:3]
        if beams is not None and not 1 <= beams <= MAX_BEAMS:
            raise InvalidRequest(f"num_beams must lie between 1 and {MAX_BEAMS}, not {beams}")
        if new_tokens is not None and not 1 <= new_tokens <= max_tokens:
            raise InvalidRequest(f"max_new_tokens must lie between 1 and {max_tokens}, not {new_tokens}")
        if penalty is not None and not abs(penalty) <= MAX_LENGTH_PENALTY:
            limit = MAX_LENGTH_PENALTY
            raise InvalidRequest(f"length_penalty must lie between {-limit:g} and {limit:g}, not {penalty}")
        for name, value, least, most in (
            ("min_new_tokens", self.min_new_tokens, 0, max_tokens),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size, 0, MAX_NGRAM_SIZE),
            ("repetition_penalty", self.repetition_penalty, 1, MAX_REPETITION_PENALTY),
        ):
            if value is not None and not least <= value <= most:
                raise InvalidRequest(f"{name} must lie between {least:g} and {most:g}, not {value}")

    def constraints(self, defaults: Constraints, first_id: int | None = None) -> Constraints | None:
        """Return the rules of a search: the model's own where the request gives none; None if there are none.

        Args:
            defaults: the model's own rules.
            first_id: the forced first token, if the request's language decides it.
        """
        if first_id is None and defaults is NO_CONSTRAINTS and self[3:] == UNCONSTRAINED:
            return None
        if first_id is not None:
            defaults = replace(defaults, forced_bos_token_id=first_id)
        if self.bounded:
            found = Constraints(forced_bos_token_id=defaults.forced_bos_token_id)
        else:
            given = {name: getattr(self, name) for name in CONSTRAINTS_OF_REQUESTS}
            changes = {name: value for name, value in given.items() if value is not None}
            found = replace(defaults, **changes) if changes else defaults
        return None if found == NO_CONSTRAINTS else found


DEFAULT_SEARCH, MODEL_DEFAULTS = SearchRequest(), SearchDefaults()
UNCONSTRAINED = DEFAULT_SEARCH[3:]
# Searches with which golden translations are made and models are compared.
GOLDEN_SEARCHES = {
    "greedy": SearchRequest(num_beams=1, bounded=True),
    "beam 4": SearchRequest(num_beams=4, bounded=True),
}


class Hypothesis(NamedTuple):
    """A translation: its tokens without the end-of-sentence token, and its length-penalised score."""

    ids: list[int]
    score: float


class Search:
    """Greedy or beam search for the translation of one sentence.

    Beam search follows Sutskever et al. 2014 (arXiv 1409.3215, section 3.2), with the rule of most translation systems:
    a hypothesis that ends among the best `num_beams` candidates is kept, the search ends when there are `num_beams` of
    them and `early_stopping` allows it, and the one with the best score is the answer.
    """

    def __init__(self, options: SearchOptions, *, bos_id: int, eos_id: int) -> None:
        """Start with the empty translation in all rows."""
        self.options, self._eos_id = options, eos_id
        # All beams start equal, so the first candidates must come from one row.
        self._sums = [0.0] + [NEVER] * (options.num_beams - 1)
        self._ids: list[list[int]] = [[] for _ in range(options.num_beams)]
        self._last = [bos_id] * options.num_beams
        self._likeliest = 0
        self._finished: list[Hypothesis] = []
        self.steps = 0
        self.done = False

    @property
    def num_candidates(self) -> int:
        """The number of most probable next tokens that `advance` needs for each row."""
        return num_candidates(self.options.num_beams)

    @property
    def next_ids(self) -> list[int]:
        """The newest token of each row [W], which is the input of the next decoder step."""
        return self._last

    def advance(self, log_probabilities: Sequence[Sequence[float]], ids: Sequence[Sequence[int]]) -> list[int]:
        """Extend the hypotheses by one token.

        Args:
            log_probabilities: the highest log probabilities of each row's next tokens, in descending order: [W, N] with
                N at least `num_candidates`.
            ids: the tokens that they belong to, [W, N].

        Returns:
            for each row of the next step, the row of this step that it continues: [W].
        """
        self.steps += 1
        if self.options.num_beams == 1:
            return self._advance_greedily(log_probabilities[0][0], ids[0][0])
        scores = [total + each for total, row in zip(self._sums, log_probabilities, strict=True) for each in row]
        best = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[: self.num_candidates]
        going_on: list[tuple[int, float, int]] = []  # (parent row, sum of log probabilities, new token)
        for rank, number in enumerate(best):
            row, place = divmod(number, len(log_probabilities[0]))
            token = ids[row][place]
            if token == self._eos_id:
                # Only among the best candidates, or a short, improbable ending would count as found.
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
        """Keep the best `num_beams` finished hypotheses; return whether a running one may still become one of them."""
        options = self.options
        self._finished = sorted(self._finished, key=lambda found: found.score, reverse=True)[: options.num_beams]
        if options.early_stopping is True:
            return False
        to_the_end = options.early_stopping == "never" and options.length_penalty > 0
        length = options.max_new_tokens if to_the_end else self.steps
        best_score: float = self._sums[self._likeliest] / length**options.length_penalty
        return best_score > self._finished[-1].score

    def _take_rows(self, going_on: list[tuple[int, float, int]]) -> list[int]:
        """Assign hypotheses to rows, most probable first, and to the parent's row if it is free, to avoid a copy."""
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
        """The tokens of the most probable row; in greedy search they are final."""
        return self._ids[self._likeliest]

    def best(self) -> Hypothesis:
        """Return the best hypothesis of a finished search."""
        return max(self._finished, key=lambda hypothesis: hypothesis.score)


def longest_translation(source_tokens: int, max_tokens: int) -> int:
    """Return the length at which a search is cut off; translations are seldom more than twice as long as the source."""
    return min(max_tokens, 2 * source_tokens + 10)


def num_candidates(num_beams: int) -> int:
    """Return the number of next tokens that a search needs for each row; half may be end-of-sentence tokens."""
    return 1 if num_beams == 1 else 2 * num_beams


def top_k_log_probs(logits_RV: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return log probabilities and ids of the `count` most probable tokens of each row, highest first: [R, count]."""
    highest_R1 = logits_RV.max(axis=1, keepdims=True)
    normaliser_R1 = highest_R1 + np.log(np.exp(logits_RV - highest_R1).sum(axis=1, keepdims=True))
    ids_RN = np.argpartition(-logits_RV, count - 1, axis=1)[:, :count]
    found_RN = np.take_along_axis(logits_RV, ids_RN, axis=1)
    order_RN = np.argsort(-found_RN, axis=1, kind="stable")
    ids_RN = np.take_along_axis(ids_RN, order_RN, axis=1)
    return np.take_along_axis(logits_RV, ids_RN, axis=1) - normaliser_R1, ids_RN
