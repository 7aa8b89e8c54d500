"""Strict F1 of entities: one is right if start, end and label are all right (CoNLL-2003, Tjong Kim Sang 2003).

Shapes: S texts, L labels.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.data.token_classification import Entity
from export.training.measures.intervals import Interval, bootstrap_intervals, json_able, wilson_interval
from export.training.measures.labels import LabelQuality, f1_of, quality_by_label


@dataclass(frozen=True)
class EntityQuality:
    """Quality of predicted entities; intervals are at 95 %, those of F1 by bootstrap over texts."""

    num_examples: int  # texts
    num_entities: int
    precision: float  # NaN if nothing is predicted
    recall: float
    f1_micro: float
    f1_micro_interval: Interval
    f1_macro: float  # over the labels that occur among true or predicted ones
    f1_macro_interval: Interval
    whole_texts: float  # fraction of texts whose entities are all right
    whole_texts_interval: Interval  # Wilson
    labels: list[LabelQuality]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return dict(json_able(asdict(self)))


def entity_quality(
    predicted: Sequence[Sequence[Entity]], true: Sequence[Sequence[Entity]], names: Sequence[str]
) -> EntityQuality:
    """Judge each text's predicted entities against its true ones; the order of entities does not matter.

    Raises:
        KeyError: an entity has a label that is not among the names.
    """
    number_of = {name: number for number, name in enumerate(names)}
    right_SL, true_SL, predicted_SL = (np.zeros((len(true), len(names)), np.float32) for _ in range(3))
    whole_texts = 0
    for text, (found, wanted) in enumerate(zip(predicted, true, strict=True)):
        sets = (set(found) & set(wanted), set(wanted), set(found))
        whole_texts += sets[1] == sets[2]
        for table_SL, entities in zip((right_SL, true_SL, predicted_SL), sets, strict=True):
            for entity in entities:
                table_SL[text, number_of[entity.label]] += 1

    def counts(rows: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        weights_S = np.bincount(rows, minlength=len(true)).astype(np.float32)
        return [weights_S @ table_SL for table_SL in (right_SL, true_SL, predicted_SL)]

    def measure(rows: NDArray[np.int64]) -> dict[str, float]:
        by_label = counts(rows)
        f1_L = f1_of(*by_label)
        defined = f1_L[~np.isnan(f1_L)]
        micro = f1_of(*(each.sum(keepdims=True) for each in by_label))
        return {"f1_micro": float(micro[0]), "f1_macro": float(defined.mean()) if len(defined) else float("nan")}

    everything = np.arange(len(true))
    figures, intervals = measure(everything), bootstrap_intervals(measure, len(true))
    (total,) = quality_by_label(["all"], *(each.sum(keepdims=True) for each in counts(everything)))
    return EntityQuality(
        num_examples=len(true),
        num_entities=total.num_true,
        precision=total.precision,
        recall=total.recall,
        f1_micro=figures["f1_micro"],
        f1_micro_interval=intervals["f1_micro"],
        f1_macro=figures["f1_macro"],
        f1_macro_interval=intervals["f1_macro"],
        whole_texts=whole_texts / len(true),
        whole_texts_interval=wilson_interval(whole_texts, len(true)),
        labels=quality_by_label(names, *counts(everything)),
    )
