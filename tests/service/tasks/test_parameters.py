"""Parameters of Hugging Face's tasks: which belong to other tasks, and which values change nothing."""

import msgspec
import pytest

from service.errors import InvalidRequest
from service.tasks.hub_messages import (
    ImageClassificationRequest,
    SearchParameters,
    TextClassificationRequest,
    TranslationRequest,
    read_json,
)
from service.tasks.parameters import NEUTRAL, OWNER_OF, check_neutral, is_neutral
from service.tasks.table import TASKS

WHOSE = "model 'm' is a model"


def test_every_parameter_of_a_task_has_an_owner() -> None:
    """The error for it says where it belongs, wherever it is sent by mistake."""
    for task in TASKS.values():
        fields = {field.name: field for field in msgspec.structs.fields(task.hub_request)}
        (kind,) = (each for each in fields["parameters"].type.__args__ if each is not type(None))
        assert set(kind.__struct_fields__) <= OWNER_OF.keys(), task.name


def test_neutral_values_are_those_of_their_type() -> None:
    """A truth value is no number, and null is always neutral."""
    assert set(NEUTRAL) <= set(SearchParameters.__struct_fields__)
    for name, values in NEUTRAL.items():
        assert all(is_neutral(name, value) for value in (*values, None))
    assert is_neutral("temperature", 1)
    assert not is_neutral("temperature", True)
    assert not is_neutral("do_sample", 0)
    check_neutral({"temperature": 1.0, "unknown": 7})
    with pytest.raises(InvalidRequest, match="'temperature' is 0.3; only 1.0 is offered, which changes nothing"):
        check_neutral({"temperature": 0.3})


@pytest.mark.parametrize(
    ("kind", "parameters", "text"),
    [
        (TextClassificationRequest, {"candidate_labels": ["a"]}, "belongs to zero-shot-classification; model 'm' is"),
        (TextClassificationRequest, {"num_beams": 2}, "'num_beams' belongs to translation; model 'm' is"),
        (TextClassificationRequest, {"min_length": 2}, "belongs to translation, summarization and text-generation;"),
        (TextClassificationRequest, {"aggregation_strategy": "max"}, "belongs to token-classification;"),
        (
            ImageClassificationRequest,
            {"truncation": True},
            "belongs to tasks that read texts;",
        ),
        (ImageClassificationRequest, {"threshold": 0.5}, "belongs to object-detection and image-segmentation;"),
        (TranslationRequest, {"function_to_apply": "none"}, "belongs to text-classification and image-classification;"),
        (TranslationRequest, {"generate_parameters": {"return_full_text": True}}, "belongs to text-generation;"),
        (TranslationRequest, {"nonsense": 1}, "unknown field `nonsense`"),
    ],
)
def test_a_parameter_of_another_task_is_refused_by_name(
    kind: type[msgspec.Struct], parameters: dict[str, object], text: str
) -> None:
    """The error names the task that it belongs to."""
    with pytest.raises(InvalidRequest, match=text):
        read_json(msgspec.json.encode({"inputs": "x", "parameters": parameters}), kind, WHOSE)
