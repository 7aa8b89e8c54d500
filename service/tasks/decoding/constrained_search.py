"""A search under constraints, and the choice between it and the plain search.

The decoder step gives as many candidates as the constraints may forbid or make less likely, and those that the plain
search needs. So the best ones that are left are among them, and the result is that of a search over all tokens.

Shapes: W beams, N candidates of a row.
"""

from collections.abc import Sequence

from service.tasks.decoding.constraints import MIN_CANDIDATES, Constraints, following
from service.tasks.decoding.search import NEVER, Search, SearchOptions, num_candidates


class ConstrainedSearch(Search):
    """Greedy or beam search under `Constraints`.

    As in `transformers`, beam search changes log probabilities and does not normalise them again, and greedy search
    changes logits. The latter matters for the repetition penalty alone, which needs the logarithm of each row's
    softmax denominator (`log_normalizers`).
    """

    def __init__(
        self,
        options: SearchOptions,
        constraints: Constraints,
        source_ids: Sequence[int],
        *,
        bos_id: int,
        eos_id: int,
    ) -> None:
        """Start with the empty translation in all rows."""
        super().__init__(options, bos_id=bos_id, eos_id=eos_id)
        self._rules, self._source_ids, self._bos_id = constraints, list(source_ids), bos_id
        self._eos_ids = {eos_id, *constraints.more_eos_token_ids}
        single = {word[0] for word in constraints.bad_words_ids if len(word) == 1}
        self._always = frozenset(constraints.suppress_tokens) | (single - self._eos_ids)
        self._longer_words = [word for word in constraints.bad_words_ids if len(word) > 1]
        self._needed = candidates_kept(options.num_beams, len(self._eos_ids))
        # The logarithm of each row's softmax denominator [W], which the caller sets before `advance`.
        self.log_normalizers: Sequence[float] = ()

    @property
    def num_candidates(self) -> int:
        """The number of most probable next tokens that are kept of each row, after the constraints."""
        return self._needed

    def advance(self, log_probabilities: Sequence[Sequence[float]], ids: Sequence[Sequence[int]]) -> list[int]:
        """Extend the hypotheses by one token, as `Search.advance` does."""
        rules = self._rules
        if self.steps == 0 and rules.forced_bos_token_id is not None:
            return self._begin_with(rules.forced_bos_token_id)
        if rules.forces_eos and self.steps + 1 >= self.options.max_new_tokens:
            return self._end()
        allowed = [
            self._allowed(row, probabilities, tokens)
            for row, (probabilities, tokens) in enumerate(zip(log_probabilities, ids, strict=True))
        ]
        # `Search` takes rows of equal length.
        width = max(map(len, allowed))
        rows = [[*row, *[(NEVER, 0)] * (width - len(row))] for row in allowed]
        return super().advance(
            [[probability for probability, _ in row] for row in rows], [[token for _, token in row] for row in rows]
        )

    def _begin_with(self, token: int) -> list[int]:
        """Take the forced first token in all rows; it has probability 1."""
        self.steps += 1
        self._ids = [[token] for _ in self._ids]
        self._last = [token] * len(self._last)
        if self.steps >= self.options.max_new_tokens:
            self._finish(self._ids[0], 0.0, self.steps)
            self.done = True
        return list(range(self.options.num_beams))

    def _end(self) -> list[int]:
        """End all rows with the end-of-sentence token; it has probability 1."""
        self.steps += 1
        for ids, total in zip(self._ids, self._sums, strict=True):
            self._finish(ids, total, self.steps)
        self.done = True
        return list(range(self.options.num_beams))

    def _allowed(self, row: int, log_probabilities: Sequence[float], ids: Sequence[int]) -> list[tuple[float, int]]:
        """Return log probabilities and ids of the best candidates under the constraints, best first."""
        found = list(zip(map(float, log_probabilities), map(int, ids), strict=True))
        penalty, greedy = self._rules.repetition_penalty, self.options.num_beams == 1
        forbidden = self._forbidden(row)
        if penalty != 1.0:
            occurred = {self._bos_id, *self._ids[row]}
            normalizer = self.log_normalizers[row] if greedy else 0.0
            ranked = []
            for probability, token in found:
                score = probability + normalizer
                if token in occurred:
                    score = score * penalty if score < 0 else score / penalty
                if token not in forbidden:
                    # The score of a greedy translation is the sum of its tokens' own log probabilities.
                    ranked.append((score, probability if greedy else score, token))
            ranked.sort(key=lambda each: each[0], reverse=True)
            kept = [(probability, token) for _, probability, token in ranked[: self._needed]]
        else:
            kept = [each for each in found if each[1] not in forbidden][: self._needed]
        if len(self._eos_ids) > 1:
            # All tokens that end a translation are one to the search.
            kept = [(value, self._eos_id if token in self._eos_ids else token) for value, token in kept]
        return kept or [(NEVER, self._eos_id)]

    def _forbidden(self, row: int) -> set[int] | frozenset[int]:
        """Return the tokens that may not follow a row."""
        rules, ids, after_begin = (
            self._rules,
            self._ids[row],
            self.steps - (self._rules.forced_bos_token_id is not None),
        )
        so_far = [self._bos_id, *ids]
        forbidden = set(self._always)
        if self.steps < rules.min_new_tokens:
            forbidden |= self._eos_ids
        if after_begin == 0:
            forbidden.update(rules.begin_suppress_tokens)
        if rules.no_repeat_ngram_size:
            forbidden |= following(so_far, rules.no_repeat_ngram_size, so_far)
        if rules.encoder_no_repeat_ngram_size:
            forbidden |= following(self._source_ids, rules.encoder_no_repeat_ngram_size, so_far)
        for word in self._longer_words:
            if tuple(so_far[1 - len(word) :]) == word[:-1]:
                forbidden.add(word[-1])
        return forbidden


def new_search(options: SearchOptions, source_ids: Sequence[int], *, bos_id: int, eos_id: int) -> Search:
    """Start the search that the options ask for."""
    if options.constraints is None:
        return Search(options, bos_id=bos_id, eos_id=eos_id)
    return ConstrainedSearch(options, options.constraints, source_ids, bos_id=bos_id, eos_id=eos_id)


def candidates_kept(num_beams: int, num_eos: int) -> int:
    """Return the number of next tokens that a search needs for each row if so many tokens end a translation."""
    return max(num_candidates(num_beams), 1 if num_beams == 1 else (1 + num_eos) * num_beams)


def candidates_of(options: SearchOptions, source_tokens: int, vocab_size: int) -> int:
    """Return the number of next tokens that a decoder step must give for each row of a search.

    Args:
        options: settings of the search.
        source_tokens: number of tokens of the source.
        vocab_size: number of tokens that the decoder step knows.
    """
    rules = options.constraints
    if rules is None:
        return num_candidates(options.num_beams)
    kept = candidates_kept(options.num_beams, 1 + len(rules.more_eos_token_ids))
    changed = rules.most_changed(source_tokens, options.max_new_tokens)
    if not changed:
        return kept
    return min(vocab_size, max(MIN_CANDIDATES, 1 << (kept + changed - 1).bit_length()))


def reads_normalizers(options: SearchOptions) -> bool:
    """Whether a search needs the logarithm of each row's softmax denominator."""
    rules = options.constraints
    return rules is not None and rules.repetition_penalty != 1.0 and options.num_beams == 1
