"""Translation models on sentence pairs of one's own: data, recipe, and conversion of runs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from export.conversion.comparison.requirements import MIN_COMPARED
from export.conversion.golden_texts import made_up_sentences
from export.data.own.splits import TEST
from export.data.own.translation import TranslationRequest, load_pairs, rebuild_pairs
from export.data.translation import ParallelTexts, TranslationData
from export.task_table import TRANSLATION
from export.tasks.own.quality import about_data
from export.tasks.task import OwnOptions
from export.training.fine_tuning.settings import SCRATCH

FEW_PAIRS, MANY_PAIRS = 10_000, 100_000  # training pairs: below and from which other networks are trained
FURTHER = "further sentences"  # compared with PyTorch, without references


def load_own_pairs(options: OwnOptions) -> TranslationData:
    """Read sentence pairs of one's own.

    Raises:
        ValueError: a language is missing, or the data cannot be used.
    """
    for name in ("source_language", "target_language"):
        if not getattr(options, name):
            raise ValueError(
                f"{TRANSLATION} needs --{name.replace('_', '-')}: a code such as en or de, which is also the column's"
                " name where no other is given"
            )
    return _named(load_pairs(options.request(TranslationRequest, TRANSLATION)))


def own_pairs(document: Mapping[str, Any]) -> TranslationData:
    """Read the pairs of a run again.

    Raises:
        ValueError: the data is gone or has changed.
    """
    return _named(rebuild_pairs(document))


def _named(data: TranslationData) -> TranslationData:
    """Name the test split as that of every other task."""
    return replace(data, test=dict(zip([TEST], data.test.values(), strict=False)))


def recipe_for_pairs(num_pairs: int, start_from: str) -> tuple[str, str]:
    """Choose the name of a recipe by the number of training pairs, and say why.

    Raises:
        ValueError: a start with weights is asked for.
    """
    if start_from not in ("", SCRATCH):
        raise ValueError(
            f"--start-from {start_from}: translation models are trained from scratch; a saved one is converted with"
            " `load`"
        )
    if num_pairs < FEW_PAIRS:
        return "pairs-few", f"{num_pairs:,} training pairs are fewer than {FEW_PAIRS:,}"
    if num_pairs < MANY_PAIRS:
        return "pairs", f"{num_pairs:,} training pairs are fewer than {MANY_PAIRS:,}"
    return "pairs-many", f"{num_pairs:,} training pairs are at least {MANY_PAIRS:,}"


def conversion_of_own_pairs(result: Mapping[str, Any]) -> tuple[dict[str, ParallelTexts], dict[str, Any]]:
    """Return the sentences to compare and measure on, and what manifest and card say of the data.

    Where the reporting split is small, training sentences and made-up ones are compared with PyTorch too.

    Raises:
        ValueError: the data is gone or has changed.
    """
    data = own_pairs(result["data_document"])
    compare_on = dict(data.reported)
    if (lacking := MIN_COMPARED - sum(map(len, compare_on.values()))) > 0:
        known = data.train.source[:lacking]
        compare_on[FURTHER] = ParallelTexts([*known, *made_up_sentences(lacking - len(known))], [])
    return compare_on, about_data(result)
