"""Constraints on a search: which tokens may follow. Names and meaning are those of Hugging Face's generation.

The rules are those of the logits processors of `transformers` (`transformers/generation/logits_process.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_NGRAM_SIZE = 64
MAX_REPETITION_PENALTY = 10.0
# The number of candidates is rounded up to a power of two of at least this, so that sentences share decoder steps.
MIN_CANDIDATES = 16


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Rules that change which token may follow.

    Attributes:
        min_new_tokens: the end is forbidden before a translation has so many tokens.
        no_repeat_ngram_size: no sequence of so many tokens may occur twice in a translation; 0 for no rule.
        encoder_no_repeat_ngram_size: no sequence of so many tokens of the source may occur in a translation.
        repetition_penalty: divisor of the positive scores, and factor of the negative ones, of tokens that occurred.
            At least 1.
        bad_words_ids: sequences of tokens that may not occur.
        suppress_tokens: tokens that may not occur.
        begin_suppress_tokens: tokens that may not be the first one, or the first one after `forced_bos_token_id`.
        forced_bos_token_id: the first token.
        forces_eos: a translation of the maximum length ends with the end-of-sentence token.
        more_eos_token_ids: other tokens that end a translation.
    """

    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forces_eos: bool = False
    more_eos_token_ids: tuple[int, ...] = ()

    def most_changed(self, source_tokens: int, max_new_tokens: int) -> int:
        """Return how many tokens of one step these rules may forbid or make less likely, at most."""
        changed = len(self.bad_words_ids) + len(self.suppress_tokens) + len(self.begin_suppress_tokens)
        if self.min_new_tokens:
            changed += 1 + len(self.more_eos_token_ids)
        if self.no_repeat_ngram_size or self.repetition_penalty != 1.0:
            changed += max_new_tokens  # the begin token and all tokens so far
        if self.encoder_no_repeat_ngram_size:
            changed += source_tokens
        return changed


NO_CONSTRAINTS = Constraints()


def following(ids: Sequence[int], size: int, last: Sequence[int]) -> set[int]:
    """Return the tokens that would complete an n-gram of `ids` behind the last tokens.

    Args:
        ids: the tokens whose n-grams count.
        size: number of tokens of an n-gram.
        last: the tokens so far.
    """
    if len(last) + 1 < size:
        return set()
    before = size - 1
    prefix = list(last[len(last) - before :])
    return {ids[end] for end in range(before, len(ids)) if ids[end - before : end] == prefix}
