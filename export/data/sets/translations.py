"""Reads described data sets of parallel texts."""

from functools import reduce
from operator import add
from typing import Any

from export.data.sets.description import DataSet, data_set
from export.data.translation import ParallelTexts, TranslationData
from export.task_table import TRANSLATION


def load_translation_set(key: str) -> TranslationData:
    """Load the data set with this key, such as "multi30k".

    Raises:
        ValueError: there is no such data set.
        FileNotFoundError: its files are missing.
    """
    return read_translations(data_set(key, TRANSLATION))


def read_translations(described: DataSet) -> TranslationData:
    """Read a described data set, or join those that it names; sentences lose the space around them."""
    if described.train_on:
        return _joined(described)
    splits = described.read()

    def read(split: Any) -> ParallelTexts:
        source, target = (split[described.columns[side]] for side in ("source", "target"))
        return ParallelTexts([text.strip() for text in source], [text.strip() for text in target])

    train, validation, test = (read(splits[described.splits[name]]) for name in ("train", "validation", "test"))
    return TranslationData(
        described.name,
        described.licence,
        described.source_language,
        described.target_language,
        train,
        validation,
        {described.name: test},
    )


def _joined(described: DataSet) -> TranslationData:
    parts = {key: load_translation_set(key) for key in described.train_on}
    trained, tested = [parts[key] for key in described.train_on], [parts[key] for key in described.test_on]
    return TranslationData(
        described.name,
        "; ".join(part.licence for part in tested),
        tested[0].source_language,
        tested[0].target_language,
        reduce(add, [part.train for part in trained]),
        reduce(add, [part.validation for part in trained]),
        {name: split for part in tested for name, split in part.test.items()},
    )
