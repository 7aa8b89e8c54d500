"""Settings of training an encoder on texts with entities; `export/recipes/entities-*.toml` has the recipes."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from export.networks.bert_weights import MINILM_PACKAGE
from export.training.fine_tuning.settings import FEW_ROWS, MINILM, SCRATCH, FineTuneConfig


@dataclass(frozen=True, kw_only=True)
class EntityTrainConfig(FineTuneConfig):
    """How an encoder of `transformers` is trained to find entities.

    `max_tokens` is the size of a window: longer texts are cut into windows that share a quarter of their tokens.
    """

    # Which tokens of a word teach: "all" gives every token the tag of its characters, so that entities are right with
    # the strategy `simple` of requests; "first" leaves the others out, for the strategy `first`.
    labelled_tokens: Literal["all", "first"] = "all"


def recipe_for(num_texts: int, start_from: str) -> tuple[str, str]:
    """Choose the name of a recipe by the number of training texts and the given start, and say why."""
    few, start = num_texts < FEW_ROWS, start_from
    why = f"{num_texts:,} training texts are {'fewer than' if few else 'at least'} {FEW_ROWS:,}"
    if not start and find_spec(MINILM_PACKAGE) is None:
        start = SCRATCH
        why += "; from scratch, because MiniLM is not installed (extra `pretrained`) and --start-from names no encoder"
    elif not start:
        start = MINILM
        why += "; MiniLM knows English, without case: for other languages name an encoder with --start-from"
    return f"entities-{'scratch' if start == SCRATCH else 'encoder'}{'-few-rows' if few else ''}", why
