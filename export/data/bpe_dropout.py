"""BPE-dropout: words are segmented differently each time, so that pieces are learned in more than one context.

Provilkov, Emelianenko and Voita 2020, "BPE-Dropout: Simple and Effective Subword Regularization" (arXiv 1910.13267):
while a word is merged from its characters, each merge is skipped with some probability.

The `tokenizers` package can do this, but its random generator cannot be seeded, so runs would not be reproducible. Here
each word gets a fixed number of segmentations once, and each occurrence draws one of them.
"""

import itertools
import json

import numpy as np
from tokenizers import Tokenizer

NUM_CUTS = 16  # segmentations of each word


class SubwordDropout:
    """BPE dropout: segments the texts of a training split differently in every epoch."""

    def __init__(self, tokenizer: Tokenizer, texts: list[str], skip_fraction: float, *, end_id: int, seed: int) -> None:
        """Segment every word of the texts.

        Args:
            tokenizer: a byte-level BPE tokenizer whose texts end with `end_id`.
            texts: the texts that `encode` segments.
            skip_fraction: the fraction of skipped merges.
            end_id: the id at the end of every text.
            seed: the seed of the segmentations.
        """
        document = json.loads(tokenizer.to_str())["model"]
        self._ids: dict[str, int] = document["vocab"]
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(document["merges"])}
        self._skip_fraction, self._end_id = skip_fraction, end_id
        rng = np.random.default_rng(seed)
        numbers: dict[str, int] = {}
        self._words: list[list[int]] = []  # word numbers of each text
        for text in texts:
            normal = tokenizer.normalizer.normalize_str(text)
            words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]
            self._words.append([numbers.setdefault(word, len(numbers)) for word in words])
        self._cuts = [[self._cut(word, rng) for _ in range(NUM_CUTS)] for word in numbers]

    def _cut(self, word: str, rng: np.random.Generator) -> list[int]:
        pieces = list(word)
        while len(pieces) > 1:
            ranks = [self._ranks.get(pair) for pair in itertools.pairwise(pieces)]
            kept = rng.random(len(ranks)) >= self._skip_fraction
            possible = [(rank, place) for place, rank in enumerate(ranks) if rank is not None and kept[place]]
            if not possible:
                break
            _, place = min(possible)
            pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
        return [self._ids[piece] for piece in pieces]

    def encode(self, rng: np.random.Generator) -> list[list[int]]:
        """Return the ids of all texts, each word in one of its segmentations."""
        encoded = []
        for words in self._words:
            ids: list[int] = []
            for word, cut in zip(words, rng.integers(NUM_CUTS, size=len(words)).tolist(), strict=True):
                ids += self._cuts[word][cut]
            encoded.append([*ids, self._end_id])
        return encoded
