"""The task of an encoder-decoder checkpoint is told from its architecture and its own settings."""

import pytest

from export.conversion.checkpoints.architecture import task_of_config
from export.task_table import SUMMARIZATION, TEXT2TEXT_GENERATION, TRANSLATION


@pytest.mark.parametrize(
    ("architecture", "params", "task"),
    [
        ("MarianMTModel", None, TRANSLATION),
        ("MBartForConditionalGeneration", None, TRANSLATION),
        ("M2M100ForConditionalGeneration", None, TRANSLATION),
        ("T5ForConditionalGeneration", None, TEXT2TEXT_GENERATION),
        ("T5ForConditionalGeneration", {"summarization": {}, "translation_en_to_de": {}}, TEXT2TEXT_GENERATION),
        ("BartForConditionalGeneration", {"summarization": {"min_length": 56}}, SUMMARIZATION),
        ("BartForConditionalGeneration", {}, TEXT2TEXT_GENERATION),
    ],
)
def test_an_architecture_tells_the_task(architecture: str, params: dict[str, object] | None, task: str) -> None:
    """A checkpoint with settings for summarization alone summarizes."""
    config = {"architectures": [architecture]} | ({} if params is None else {"task_specific_params": params})
    assert task_of_config(config) == task
