"""Text augmentation for distillation. Edits may change the label, because the teacher relabels every edited text.

Words are dropped, texts are joined, and words are replaced by words of similar meaning or use, so that a student sees
words that its training texts lack. After Tang et al. 2019 (arXiv
1903.12136, section 4.3) and, for the words' neighbours, Jiao et al. 2020 (TinyBERT, arXiv 1909.10351, algorithm 1).

Shapes: W words, D width of their vectors.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

NUM_NEIGHBOURS = 15
WORDS_AT_ONCE = 1024  # per matrix product, to bound its memory


def augment_texts(
    texts: Sequence[str],
    rng: np.random.Generator,
    *,
    drop_fraction: float,
    join_fraction: float,
    replace_fraction: float = 0.0,
    neighbours: dict[str, list[str]] | None = None,
) -> list[str]:
    """Edit each text at random; equal states of `rng` give equal edits.

    Args:
        texts: texts of words separated by spaces.
        rng: the source of the random choices.
        drop_fraction: the fraction of dropped words; at least one word stays.
        join_fraction: the fraction of texts that get another one appended.
        replace_fraction: the fraction of words with neighbours that are replaced by one of them.
        neighbours: the neighbours of each word, as `neighbours_of` finds them.
    """
    known = neighbours or {}
    changed = []
    for text in texts:
        joined = f"{text} {texts[int(rng.integers(len(texts)))]}" if rng.random() < join_fraction else text
        words = joined.split()
        kept = [word for word in words if rng.random() >= drop_fraction] or words
        if replace_fraction:
            kept = [
                known[word][rng.integers(len(known[word]))]
                if word in known and rng.random() < replace_fraction
                else word
                for word in kept
            ]
        changed.append(" ".join(kept))
    return changed


def neighbours_of(
    words: Iterable[str], candidates: Iterable[str], tokenizer: Tokenizer, vectors_VD: Tensor
) -> dict[str, list[str]]:
    """Find for each word the candidates whose vectors have the highest cosine similarity to its own.

    Args:
        words: the words of the texts; words of more than one piece get no neighbours.
        candidates: the words that may replace another.
        tokenizer: tells which words are one piece.
        vectors_VD: the embedding of each piece.
    """
    ids = tokenizer.get_vocab()
    found = sorted(word for word in set(words) if word in ids)
    others = sorted(word for word in set(candidates) if word in ids)
    if not found or len(others) <= NUM_NEIGHBOURS:
        return {}
    units_VD = functional.normalize(vectors_VD.float(), dim=1)
    others_WD = units_VD[[ids[word] for word in others]]
    neighbours = {}
    for first in range(0, len(found), WORDS_AT_ONCE):
        some = found[first : first + WORDS_AT_ONCE]
        likeness = units_VD[[ids[word] for word in some]] @ others_WD.T
        nearest = torch.topk(likeness, NUM_NEIGHBOURS + 1).indices.tolist()
        for word, numbers in zip(some, nearest, strict=True):
            near = [others[number] for number in numbers if others[number] != word]
            neighbours[word] = near[:NUM_NEIGHBOURS]
    return neighbours
