"""Parallel texts: Multi30k and Tatoeba, English to German."""

import os
from dataclasses import dataclass
from typing import Any

import datasets

from export.data.hub import source_of

MULTI30K_HUB_ID = "bentrevett/multi30k"
MULTI30K_LICENCE = "Multi30k: CC BY-NC-SA 4.0, not for commercial use"
TATOEBA_LICENCE = "Tatoeba: CC BY 2.0 FR (www.manythings.org/anki and tatoeba.org)"


@dataclass(frozen=True)
class ParallelTexts:
    """One split: sentences and their translations."""

    source: list[str]
    target: list[str]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def inputs(self) -> list[str]:
        """The sentences as a client would send them."""
        return self.source

    def __add__(self, other: "ParallelTexts") -> "ParallelTexts":
        return ParallelTexts(self.source + other.source, self.target + other.target)


@dataclass(frozen=True)
class TranslationData:
    """A data set for translation; `test` has a split for each of its sources, by name.

    `document` records a data set of one's own, so that `rebuild_pairs` (export/data/own/translation.py) reads the same
    splits again.
    """

    name: str
    licence: str
    source_language: str
    target_language: str
    train: ParallelTexts
    validation: ParallelTexts
    test: dict[str, ParallelTexts]
    document: dict[str, Any] | None = None


def load_multi30k() -> TranslationData:
    """Load Multi30k, English to German, raw text (Elliott et al. 2016): 29,000 captions; `test` is test2016."""
    splits = datasets.load_dataset(source_of(MULTI30K_HUB_ID, "multi30k"))
    train, validation, test = (_pairs(splits[name]) for name in ("train", "validation", "test"))
    return TranslationData("Multi30k", MULTI30K_LICENCE, "en", "de", train, validation, {"Multi30k": test})


def load_multi30k_and_tatoeba() -> TranslationData:
    """Load Multi30k and the sentence pairs of Tatoeba together.

    Raises:
        FileNotFoundError: HEED_DATASETS is not set; no hub has these splits of Tatoeba.
    """
    if not os.environ.get("HEED_DATASETS"):
        raise FileNotFoundError("set HEED_DATASETS to the folder with tatoeba-en-de: its splits are on no hub")
    captions = load_multi30k()
    splits = datasets.load_dataset(source_of("", "tatoeba-en-de"))
    train, validation, test = (_pairs(splits[name]) for name in ("train", "validation", "test"))
    return TranslationData(
        "Tatoeba and Multi30k",
        f"{MULTI30K_LICENCE}; {TATOEBA_LICENCE}",
        "en",
        "de",
        train + captions.train,
        validation + captions.validation,
        captions.test | {"Tatoeba": test},
    )


def _pairs(split: Any) -> ParallelTexts:
    return ParallelTexts([text.strip() for text in split["en"]], [text.strip() for text in split["de"]])
