"""The value function of an answer that is decoded: the log probability of each of its tokens.

Shapes: S source tokens, T target tokens, K tokens of the answer.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from service.tasks.decoding.sentence import Sentence
from service.tasks.explainable import ValueFunction
from service.tensors import Arrays

if TYPE_CHECKING:  # the task calls this module
    from service.tasks.translation import Translation


def explained_values(task: "Translation", item: Sentence, result: Sentence) -> ValueFunction:
    """Return the log probabilities of the answer's tokens as a function of the source tokens that are kept."""
    target_ids = task.tokens_of(result)
    return ValueFunction(
        item_of=lambda ids: task.forced(ids, target_ids, item.bos_id),
        values_of=lambda forced: forced.log_probabilities,
        # Geometric mean of the tokens' probabilities: the probability of a whole translation is close to 0.
        fraction_of=lambda values_K: math.exp(values_K.mean()),
        whole=None,
        target=task.finish(result).text,
        row=lambda: translation_row(item.ids, target_ids),
        target_pieces=lambda: pieces_of(task, target_ids),
    )


def pieces_of(task: "Translation", target_ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds to an answer; the end-of-sentence token gives its name."""
    pieces, before = [], ""
    for number, token in enumerate(target_ids, 1):
        if task.ended([]) == [token]:
            pieces.append(task.token_name(token))
            continue
        text = task.text_so_far(list(target_ids[:number]))
        pieces.append(text[len(before) :])
        before = text
    return pieces


def translation_row(source_S: Sequence[int], target_T: Sequence[int]) -> Arrays:
    """Make the explanation graph's input for a source and an answer, with its end-of-sentence token if any."""
    source, target = np.array(source_S, dtype=np.int64), np.array(target_T, dtype=np.int64)
    return {
        "source_ids": source,
        "source_mask": np.ones_like(source),
        "target_ids": target,
        "target_mask": np.ones_like(target),
    }
