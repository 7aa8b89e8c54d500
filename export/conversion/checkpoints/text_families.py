"""The table of the families of text encoders that are loaded: what differs between them, for every task.

A family is added with a line here, one in `tests/export/conversion/family_checkpoints.py`, and `make test-families`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

INPUT_IDS, ATTENTION_MASK, TOKEN_TYPES = "input_ids", "attention_mask", "token_type_ids"
# `transformers` writes a number above this into `model_max_length` of a tokenizer without a limit.
NO_LIMIT = 10**9
# Hides padding where scores are not bounded by a normalisation. ONNX Runtime computes it more slowly than `HIDDEN` of
# `export.networks.transformer`, for its exponential is a subnormal number.
HIDDEN_FROM_LARGE_SCORES = -10_000.0

Positions = Literal["absolute", "after padding", "relative", "rotary"]
Attention = Literal["by interface", "of MPNet", "as written"]


@dataclass(frozen=True, kw_only=True)
class TextFamily:
    """What conversion must know of a family of encoders.

    Attributes:
        name: the name that its authors gave it, for pages.
        positions: what limits the length. "absolute": the table of positions. "after padding": the same, where the
            first position has the number behind that of the padding token. "relative": nothing, unless the
            configuration adds absolute positions. "rotary": the length that the network was trained for.
        attention: how attention becomes one operator of the exported graph. "by interface": through the interface of
            `transformers`. "of MPNet": by a module of its own, for the family does not use the interface. "as written":
            not at all, for its scores are a sum of several products.
        optimized: whether ONNX Runtime's optimizer of BERT understands the layers.
        distances: whose buckets of relative positions the graph looks up in a table; None where it computes none.
        hidden: the bias that hides padding in fused attention; None for the usual one.
        has_token_types: whether the network tells the two texts of a pair apart by token types.
    """

    name: str
    positions: Positions = "absolute"
    attention: Attention = "by interface"
    optimized: bool = True
    distances: Literal["of MPNet", "of DeBERTa"] | None = None
    hidden: float | None = None
    has_token_types: bool = True

    def input_names(self, config: Any, made: tuple[str, ...]) -> tuple[str, ...]:
        """Return the inputs of the graph.

        Args:
            config: the configuration of `transformers`.
            made: the inputs that the checkpoint's tokenizer makes; without token types the network takes zeros.
        """
        typed = self.has_token_types and TOKEN_TYPES in made and getattr(config, "type_vocab_size", 0) > 0
        return (INPUT_IDS, ATTENTION_MASK, *((TOKEN_TYPES,) if typed else ()))

    def max_tokens(self, config: Any, model_max_length: int | None) -> int:
        """Return the longest input in tokens.

        Args:
            config: the configuration of `transformers`.
            model_max_length: the limit that the tokenizer states; a number above `NO_LIMIT` is none.
        """
        positions: int = config.max_position_embeddings
        if self.positions == "after padding":
            positions -= config.pad_token_id + 1
        stated = model_max_length if model_max_length and model_max_length < NO_LIMIT else None
        if self.positions == "relative" and not config.position_biased_input:
            return stated or positions
        return min(positions, stated or positions)


# By `model_type` of the configuration.
TEXT_FAMILIES: Mapping[str, TextFamily] = {
    "bert": TextFamily(name="BERT"),
    "distilbert": TextFamily(name="DistilBERT", has_token_types=False),
    "roberta": TextFamily(name="RoBERTa", positions="after padding", has_token_types=False),
    "xlm-roberta": TextFamily(name="XLM-RoBERTa", positions="after padding", has_token_types=False),
    "camembert": TextFamily(name="CamemBERT", positions="after padding", has_token_types=False),
    "electra": TextFamily(name="ELECTRA"),
    "albert": TextFamily(name="ALBERT"),
    "deberta-v2": TextFamily(
        name="DeBERTa-v2 and -v3", positions="relative", attention="as written", distances="of DeBERTa"
    ),
    # The optimizer's inference of shapes does not understand the slices of this version's table of positions.
    "deberta": TextFamily(name="DeBERTa", positions="relative", attention="as written", optimized=False),
    "mpnet": TextFamily(
        name="MPNet",
        positions="after padding",
        attention="of MPNet",
        distances="of MPNet",
        has_token_types=False,
    ),
    "mobilebert": TextFamily(name="MobileBERT", hidden=HIDDEN_FROM_LARGE_SCORES),
    "modernbert": TextFamily(name="ModernBERT", positions="rotary", has_token_types=False),
}
