"""Items of the continuous batcher: a sentence with its search, and a given translation that is scored."""

import sys
from collections.abc import Sequence

import numpy as np

from service.tasks.decoding.constrained_search import ConstrainedSearch, candidates_of, new_search, reads_normalizers
from service.tasks.decoding.search import SearchOptions
from service.tasks.decoding.source_text import NO_FRAME, Frame


class Sentence:
    """A source sentence with its search, which is an item of the continuous batcher."""

    def __init__(
        self,
        ids: list[int],
        options: SearchOptions,
        *,
        bos_id: int,
        eos_id: int,
        truncated: bool,
        vocab_size: int | None = None,
        frame: Frame = NO_FRAME,
    ) -> None:
        """Begin the search.

        Args:
            ids: the source.
            options: settings of the search.
            bos_id: first token of the translation.
            eos_id: the end-of-sentence token.
            truncated: whether a part of the source was cut off.
            vocab_size: number of tokens that the decoder step knows, for searches with constraints.
            frame: what surrounds the source text in `ids`.
        """
        self.ids, self.options, self.truncated = ids, options, truncated
        self.bos_id, self.frame, self._eos_id = bos_id, frame, eos_id
        self.rows, self.length, self.max_steps = options.num_beams, len(ids), options.max_new_tokens
        self.num_candidates = candidates_of(options, len(ids), vocab_size or sys.maxsize)
        self.reads_normalizers = reads_normalizers(options)
        self.restart()

    def restart(self) -> None:
        """Start the search again from the beginning."""
        self.search = new_search(self.options, self.ids, bos_id=self.bos_id, eos_id=self._eos_id)
        self.advance = self.search.advance

    def set_log_normalizers(self, log_normalizers: Sequence[float]) -> None:
        """Take the logarithms of the softmax denominators of the next step, [W], if `reads_normalizers`."""
        assert isinstance(self.search, ConstrainedSearch)
        self.search.log_normalizers = log_normalizers

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
        """The tokens of the most probable row."""
        return self.search.so_far


class Forced:
    """A given translation whose token log probabilities are computed; an item of the continuous batcher.

    There is no search: each step takes the next token of the translation, whatever the model would choose. The decoder
    step returns log probabilities of the whole vocabulary, so that this token is among them. Sorting them makes such a
    step several times as expensive as one of a search.
    """

    rows, reads_normalizers = 1, False

    def __init__(self, ids: list[int], target_ids: Sequence[int], *, bos_id: int, num_candidates: int) -> None:
        self.ids, self.target_ids, self.num_candidates = ids, list(target_ids), num_candidates
        self.length, self.max_steps = len(ids), len(self.target_ids)
        self._bos_id = bos_id
        self.restart()

    def set_log_normalizers(self, log_normalizers: Sequence[float]) -> None:
        """Ignore the softmax denominators: only log probabilities are recorded."""

    def restart(self) -> None:
        """Discard all log probabilities."""
        self.log_probabilities: list[float] = []

    @property
    def next_ids(self) -> list[int]:
        """The newest token, in a list of one row."""
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
        """Record the log probability of the next token; arguments and result are those of `Search.advance`."""
        (place,) = np.flatnonzero(np.asarray(ids[0]) == self.target_ids[len(self.log_probabilities)])
        self.log_probabilities.append(float(log_probabilities[0][int(place)]))
        return [0]
