"""Pairs of texts as the features of an explanation: the words of both texts, which can be taken away."""

from collections.abc import Sequence

from service.tasks.explainable import TextParts
from service.tasks.text.encoding import Tokens
from service.tasks.text.tokenization import Pair, TextEncoder

BETWEEN = "\n"  # stands between the two texts where characters are counted over both


def pair_parts(encoder: TextEncoder, pair: Pair, item: Tokens, *, truncate: bool) -> TextParts:
    """Split a pair into its tokens; each is named by its place in the ids.

    Characters are counted over the first text, a line feed, and the second text.
    """
    before = len(pair.first) + len(BETWEEN)
    spans = [
        None if span is None else (span[1][0] + before * span[0], span[1][1] + before * span[0])
        for span in encoder.pair_spans(pair, truncate=truncate)
    ]
    return TextParts(BETWEEN.join(pair), [*range(len(item.ids))], spans, encoder.names(item.ids))


def part_of_pair(item: Tokens, pad_id: int, kept: Sequence[int]) -> Tokens:
    """Make an item of the tokens at some places of a pair, or of a padding token if there are none."""
    types = None if item.type_ids is None else [item.type_ids[place] for place in kept] or [0]
    return Tokens([item.ids[place] for place in kept] or [pad_id], truncated=False, type_ids=types)
