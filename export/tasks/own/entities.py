"""Token classifiers on texts of one's own: conversion of runs, and what is measured with the served graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.data.own.entities import rebuild_entities
from export.data.token_classification import Entity, LabelledEntities
from export.tasks.text.agreement import Inputs
from export.tasks.text.rows_source import rows_of
from export.training.fine_tuning.entities.run import STRATEGY
from export.training.fine_tuning.saved_model import HUGGING_FACE, read_task_document
from export.training.measures.entities import entity_quality
from service.tasks.text.rows import RowResults
from service.tasks.text.token_classification import EntityText, TokenClassification


@dataclass(frozen=True)
class OwnEntities(Inputs):
    """The reporting split of a run, as the conversion takes it: texts, and how results are judged."""

    split: LabelledEntities
    labels: Sequence[str]
    served: TokenClassification

    def quality(self, results: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
        """Measure the entities that logits of tokens, [T, C] of each text, become."""
        found = []
        for given, numbers in zip(self.inputs, results, strict=True):
            item = rows_of(self.served, given)
            ends = np.cumsum([part.length for part in item.parts])[:-1]
            answered = self.served.finish(RowResults(item, np.split(numbers, ends)))
            found.append([Entity(each.start, each.end, each.label) for each in answered])
        return entity_quality(found, self.split.entities, self.labels).as_dict()


def own_entities(run_dir: Path, result: Mapping[str, Any], served: TokenClassification) -> OwnEntities:
    """Read the reporting split of a run again.

    Raises:
        ValueError: the data is gone or has changed.
    """
    data = rebuild_entities(result["data_document"])
    strategy = read_task_document(run_dir / HUGGING_FACE)[STRATEGY]
    texts = [EntityText(text, strategy) for text in data.reported.texts]
    return OwnEntities(texts, data.reported, data.label_names, served)
