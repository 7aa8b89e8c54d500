"""Labelled texts."""

from dataclasses import dataclass
from typing import Any


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

    @property
    def reported(self) -> LabelledTexts:
        """The split that figures are reported on: the test split, if there is one."""
        return self.validation if self.test is None else self.test

    @property
    def reported_name(self) -> str:
        """The name of the split that figures are reported on."""
        return "validation" if self.test is None else "test"
