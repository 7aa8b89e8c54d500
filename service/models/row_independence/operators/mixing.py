"""Operators that mix rows whatever their settings are, each with the reason that people read."""

from collections.abc import Mapping

from service.models.row_independence.operation import Operation, Rule
from service.models.row_independence.values import NotProved, Value

_ONE_SCALE = "takes one scale for all rows"
_SIZE_BY_VALUES = "gives a result whose size the values of all rows decide"
_PLACES = "reads or writes at places that may be in any row"
_LISTS = "makes lists or optional values, which are not supported"

STANDARD: dict[str, str] = {
    "Compress": _SIZE_BY_VALUES,
    "DynamicQuantizeLinear": _ONE_SCALE,
    "FlexAttention": "is not followed",
    "MaxRoiPool": _PLACES,
    "MaxUnpool": _PLACES,
    "NonMaxSuppression": _SIZE_BY_VALUES,
    "NonZero": _SIZE_BY_VALUES,
    "RoiAlign": _PLACES,
    "ScatterND": _PLACES,
    "StringSplit": _SIZE_BY_VALUES,
    "Unique": _SIZE_BY_VALUES,
}
# Operators that are refused even if no input depends on rows.
NEVER: dict[str, str] = {
    **dict.fromkeys(("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"), "draws random numbers"),
    **dict.fromkeys(("RandomUniform", "RandomUniformLike"), "draws random numbers"),
    **dict.fromkeys(("ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement"), _LISTS),
    **dict.fromkeys(("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"), _LISTS),
    **dict.fromkeys(("SequenceLength", "SequenceMap", "SplitToSequence"), _LISTS),
}
CLASSICAL: dict[str, str] = {"CastMap": _LISTS, "DictVectorizer": _LISTS, "ZipMap": _LISTS}
FUSED: dict[str, str] = {
    "DynamicQuantizeLSTM": _ONE_SCALE,
    "DynamicQuantizeMatMul": _ONE_SCALE,
    "Tokenizer": "pads every text to the longest",
}


def refusals(reasons: Mapping[str, str]) -> dict[str, Rule]:
    """Make a rule for each operator that ends the proof with its reason."""

    def rule_of(reason: str) -> Rule:
        def refuse(operation: Operation) -> list[Value]:
            raise NotProved(reason)

        return refuse

    return {name: rule_of(reason) for name, reason in reasons.items()}
