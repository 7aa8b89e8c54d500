"""Reads described data sets of labelled texts."""

from pathlib import Path
from typing import Any

from export.data.sets.description import DataSet, data_set
from export.data.text_classification import LabelledTexts, TextClassificationData
from export.task_table import TEXT_CLASSIFICATION

ROOT = Path(__file__).parents[3]


def load_text_set(key: str) -> TextClassificationData:
    """Load the data set with this key, such as "sst2".

    Raises:
        ValueError: there is no such data set.
        FileNotFoundError: its files are missing.
    """
    return read_texts(data_set(key, TEXT_CLASSIFICATION))


def read_texts(described: DataSet) -> TextClassificationData:
    """Read a described data set; texts lose the space around them."""
    splits = described.read()

    def read(split: Any) -> LabelledTexts:
        texts = [text.strip() for text in split[described.columns["text"]]]
        return LabelledTexts(texts, list(split[described.columns["label"]]))

    train, validation = (splits[described.splits[name]] for name in ("train", "validation"))
    names = described.labels or list(train.features[described.columns["label"]].names)
    return TextClassificationData(described.name, names, read(train), read(validation))


def load_everyday() -> LabelledTexts:
    """Load sentences in everyday spelling and case, written and labelled for this repository; 1 is positive."""
    (everyday,) = also_measured_on(data_set("sst2", TEXT_CLASSIFICATION), ["NEGATIVE", "POSITIVE"]).values()
    return everyday


def also_measured_on(described: DataSet, labels: list[str]) -> dict[str, LabelledTexts]:
    """Read the further labelled texts that models of a data set are measured on, by their names."""
    measured = {}
    for name, file in described.also_measured_on.items():
        rows = [line.split("\t") for line in (ROOT / file).read_text().splitlines()]
        measured[name] = LabelledTexts([text for _, text in rows], [labels.index(label) for label, _ in rows])
    return measured
