"""Labelled texts: SST-2, and the everyday sentences of this repository."""

from dataclasses import dataclass
from pathlib import Path

import datasets

from export.data.hub import source_of

SST2_HUB_ID = "stanfordnlp/sst2"
SST2 = "SST-2"  # the name that run folders record


@dataclass(frozen=True)
class LabelledTexts:
    """One split: texts and their class numbers, in the data set's order."""

    texts: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def inputs(self) -> list[str]:
        """The inputs as a client would send them."""
        return self.texts


@dataclass(frozen=True)
class TextClassificationData:
    """A data set for text classification, with the names of its classes by number."""

    name: str
    label_names: list[str]
    train: LabelledTexts
    validation: LabelledTexts


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
