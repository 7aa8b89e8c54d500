"""Labelled texts."""

from dataclasses import dataclass


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
