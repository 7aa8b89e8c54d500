"""Entities of long texts, and the value that an explanation of an entity evaluates, without a model."""

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.tasks.text.rows import RowResults
from service.tasks.text.token_classification import (
    EntityText,
    TokenClassification,
    TokenClassificationParameters,
    TokenClassificationRequest,
)
from tests.service.tasks.text.small_tokenizer import ARGUMENTS, NUMBER, small_tokenizer

LABELS = ["O", "B-PER", "B-LOC"]
OF_WORD = {"ada": 1, "london": 2}  # the label of a word; of others 0
LONG = "ada lived in london where a b c ada lived in london a"


@pytest.fixture
def task() -> TokenClassification:
    """Make a task with three labels and at most eight tokens."""
    return TokenClassification(small_tokenizer().to_str(), labels=LABELS, **ARGUMENTS)


def answered(task: TokenClassification, given: EntityText) -> RowResults:
    """Compute the logits of a text as a network would that knows the words."""
    item = task.rows_of(given, truncate=False, field="text", max_rows=9)
    ids_BT = task.collate([item])["input_ids"]
    (result,) = task.split_batch({"logits": logits_of(ids_BT)}, [item])
    return result


def logits_of(ids_BT: NDArray[np.int64]) -> NDArray[np.float32]:
    """Give each token of a known word its label."""
    label_of = {NUMBER[word]: label for word, label in OF_WORD.items()}
    return np.array([[np.eye(3, dtype=np.float32)[label_of.get(int(token), 0)] * 5 for token in row] for row in ids_BT])


def test_each_token_of_a_long_text_is_answered_once(task: TokenClassification) -> None:
    """Without grouping every word has one label; with it, entities of overlapping windows are not repeated."""
    single = task.finish(answered(task, EntityText(LONG, "none", frozenset())))
    assert [LONG[each.start : each.end] for each in single] == LONG.split()
    assert [each.index for each in single] == [*range(1, len(LONG.split()) + 1)]
    grouped = task.finish(answered(task, EntityText(LONG)))
    assert [(each.label, each.word) for each in grouped] == [("PER", "ada"), ("LOC", "london")] * 2


def test_an_entity_is_explained_at_its_characters(task: TokenClassification) -> None:
    """The target names a label, with or without a place; a place outside of the text is refused."""
    given = EntityText("ada lived in london")
    result = answered(task, given)
    assert task.value_function(result.item, result, None).target.startswith(("B-PER at 0:3", "B-LOC at 13:19"))
    target = task.target_of(given, "B-LOC", "model 'm'")
    assert task.value_function(result.item, result, target).target == "B-LOC at 13:19"
    placed = task.target_of(given, "B-LOC at 0:3", "model 'm'")
    function = task.value_function(result.item, result, placed)
    assert function.target == "B-LOC at 0:3"
    without = function.item_of([0, 2, 3, 4, 5])
    (part,) = task.split_batch({"logits": logits_of(task.collate([without])["input_ids"])}, [without])
    assert function.values_of(part) == [0.0]
    with pytest.raises(InvalidRequest, match="'B-LOC at 3:99' lies outside of the text, which has 19 characters"):
        task.target_of(given, "B-LOC at 3:99", "model 'm'")
    with pytest.raises(InvalidRequest, match="'X' is not a class of model 'm'; it has O, B-PER, B-LOC"):
        task.target_of(given, "X", "model 'm'")


def test_an_entity_of_a_long_text_is_explained_in_its_window(task: TokenClassification) -> None:
    """All words are features; a part has the tokens of the entity's window that are kept."""
    given = EntityText(LONG)
    result = answered(task, given)
    parts = task.parts(given, result.item, truncate=False, field="text", max_image_pixels=1, memory=None)
    assert [LONG[slice(*span)] for span in parts.spans if span is not None] == LONG.split()
    target = task.target_of(given, f"B-LOC at {LONG.rindex('london')}:{LONG.rindex('london') + 6}", "model 'm'")
    function = task.value_function(result.item, result, target)
    whole, part = function.item_of(parts.ids), function.item_of(parts.ids[4:])
    assert NUMBER["london"] in whole.parts[0].ids
    assert 0 < part.length <= whole.length <= 8
    (found,) = task.split_batch({"logits": logits_of(task.collate([whole])["input_ids"])}, [whole])
    assert function.values_of(found)[0] > 0.9


def test_a_stride_as_long_as_a_window_is_refused(task: TokenClassification) -> None:
    """The message names the limit, and a fraction is no number of tokens."""
    parameters = TokenClassificationParameters(stride=6)
    call = task.read_hub(TokenClassificationRequest(LONG, parameters))
    with pytest.raises(InvalidRequest, match="stride is 6; it must lie between 0 and 5"):
        task.rows_of(call.inputs[0], truncate=False, field="inputs", max_rows=9)
    with pytest.raises(InvalidRequest, match="'stride' must be an integer, not 1.5"):
        task.read_hub(TokenClassificationRequest(LONG, TokenClassificationParameters(stride=1.5)))
