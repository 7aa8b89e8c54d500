"""Summarization and text2text-generation: their messages, tensors and options."""

from typing import Any

import msgspec
import pytest

from service.errors import InvalidRequest
from service.tasks.generation.text_to_text import Summarization, Text2TextGeneration
from service.tasks.hub_messages import read_json, stream_end
from service.tasks.translation import Translated, Translation
from tests.conftest import ROOT

TOKENIZER_JSON = (ROOT / "model_store/translation-en-de/1/tokenizer.json").read_text()
TASKS = {Translation: "translation", Summarization: "summary", Text2TextGeneration: "generated"}


def build(kind: type[Translation]) -> Translation:
    """Set a task up with the tokenizer of the repository's translation model."""
    return kind(TOKENIZER_JSON, max_tokens=64, bos_id=1, eos_id=2, source_language="", target_language="")


@pytest.mark.parametrize(("kind", "noun"), TASKS.items())
def test_answers_have_the_names_of_the_task(kind: type[Translation], noun: str) -> None:
    """In the task API, at the end of a stream, and among the tensors."""
    task = build(kind)
    document = task.hub_document(Translated("Zwei Hunde.", -0.5, 3))
    assert document == {f"{noun}_text": "Zwei Hunde."}
    assert stream_end(document, -0.5, 3) == document | {"score": -0.5, "num_tokens": 3, "num_beams": 1}
    sentence = task.preprocess("Two dogs.", truncate=False, field="text")
    sentence.advance([[-0.5]], [[2]])
    assert list(task.to_tensors([sentence])) == [spec.name for spec in task.outputs]
    assert task.outputs[0].name.startswith(noun)


def read(kind: type[Translation], **parameters: Any) -> Any:
    """Read a request of the task API."""
    body = msgspec.json.encode({"inputs": "Two dogs.", "parameters": parameters})
    return build(kind).read_hub(read_json(body, kind.hub_request, "model 'm' is a model"))


def test_lengths_of_the_hub_count_the_begin_token() -> None:
    """`max_new_tokens` and `min_new_tokens`, which do not, come first."""
    call = read(Summarization, min_length=6, max_length=20, no_repeat_ngram_size=3.0, repetition_penalty=1.2)
    assert call.max_new_tokens == 19
    assert call.generation == (5, 3, 1.2, None, None)
    call = read(Text2TextGeneration, generate_parameters={"min_new_tokens": 2, "min_length": 6, "max_length": 999})
    assert (call.max_new_tokens, call.generation.min_new_tokens) == (64, 2)
    call = read(Text2TextGeneration, max_new_tokens=7, max_length=20, min_length=0)
    assert (call.max_new_tokens, call.generation.min_new_tokens) == (7, 0)
    assert read(Summarization).generation is None
    with pytest.raises(InvalidRequest, match="'max_length' must be at least 2, not 1"):
        read(Summarization, max_length=1)


def test_only_translation_has_languages() -> None:
    """Other tasks refuse them by name."""
    assert read(Translation, src_lang="en", tgt_lang="de").generation[3:] == ("en", "de")
    with pytest.raises(InvalidRequest, match="parameter 'tgt_lang' belongs to translation; model 'm'"):
        read(Summarization, tgt_lang="de")
