"""Labelled texts: SST-2, and the everyday sentences of this repository."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from export.data.hub import source_of

SST2_HUB_ID = "stanfordnlp/sst2"
SST2 = "SST-2"  # the name that run folders record


@dataclass(frozen=True)
class LabelledTexts:
    """One split: texts, or pairs of texts, and their labels, in the data set's order.

    A label is a class number, a sorted list of class numbers, or a float, by the problem of the data set.
    """

    texts: list[str]
    labels: list[Any]
    pairs: list[str] | None = None  # the second text of each pair

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def inputs(self) -> list[Any]:
        """The inputs as a client would send them: texts, or objects with `text` and `text_pair`."""
        if self.pairs is None:
            return self.texts
        return [{"text": text, "text_pair": pair} for text, pair in zip(self.texts, self.pairs, strict=True)]


@dataclass(frozen=True)
class TextClassificationData:
    """A data set for text classification, with the names of its classes by number; a regression has one, its column.

    `problem` is "single_label_classification", "multi_label_classification" or "regression". Epochs, seeds, temperature
    and thresholds are chosen on `validation`; `test` chooses nothing. `document` records a data set of one's own, so
    that `rebuild_texts` (export/data/own/texts.py) reads the same splits again.
    """

    name: str
    label_names: list[str]
    train: LabelledTexts
    validation: LabelledTexts
    problem: str = "single_label_classification"
    test: LabelledTexts | None = None
    document: dict[str, Any] | None = None


def load_everyday() -> LabelledTexts:
    """Load sentences in everyday spelling and case, written and labelled for this repository; 1 is positive."""
    path = Path(__file__).parents[2] / "tests" / "data" / "everyday_sentiment.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return LabelledTexts([text for _, text in rows], [int(label == "POSITIVE") for label, _ in rows])


def load_sst2() -> TextClassificationData:
    """Load SST-2 in its GLUE form: 67,349 phrases and sentences to train on, 872 whole sentences to validate.

    The test split is left out, because GLUE does not publish its labels.
    """
    splits = datasets.load_dataset(source_of(SST2_HUB_ID, "sst2"))

    def read(split: str) -> LabelledTexts:
        return LabelledTexts(
            [text.strip() for text in splits[split]["sentence"]],
            list(splits[split]["label"]),
        )

    names = [name.upper() for name in splits["train"].features["label"].names]
    return TextClassificationData(SST2, names, read("train"), read("validation"))
