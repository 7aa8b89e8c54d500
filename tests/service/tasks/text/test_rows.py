"""Windows of long texts are those that the tokenizers cut, and rows of several inputs share a call."""

import numpy as np
import pytest

from service.errors import InvalidRequest
from service.tasks.stored_task import TaskError
from service.tasks.text.rows import Body, golden_tensors, windows_of
from service.tasks.text.token_classification import EntityText, TokenClassification
from tests.service.tasks.text.small_tokenizer import ARGUMENTS, small_tokenizer

LONG = "ada lived in london where a b c ada lived in london a"


@pytest.fixture
def task() -> TokenClassification:
    """Make a task with two labels and at most eight tokens."""
    return TokenClassification(small_tokenizer().to_str(), labels=["O", "B-PER"], **ARGUMENTS)


@pytest.mark.parametrize(("size", "stride"), [(6, 0), (6, 1), (6, 5), (4, 2), (13, 3), (40, 9)])
def test_windows_are_those_of_the_tokenizer(size: int, stride: int) -> None:
    """Ids and characters of each window equal what truncation with a stride gives."""
    whole = small_tokenizer().encode(LONG)
    windows = windows_of(Body(whole.ids, None, whole.offsets, 1, len(whole.ids) - 1), size, stride)
    cutting = small_tokenizer()
    cutting.enable_truncation(size + 2, stride=stride)
    first = cutting.encode(LONG)
    expected = [first, *first.overflowing]
    assert [window.tokens.ids for window in windows] == [each.ids for each in expected]
    assert [window.spans for window in windows] == [each.offsets for each in expected]


def test_windows_of_several_texts_share_a_call(task: TokenClassification) -> None:
    """Each text gets the numbers of its own rows and tokens; padding has none."""
    items = [task.rows_of(EntityText(text), truncate=False, field="text", max_rows=9) for text in ("ada", LONG)]
    assert [item.rows for item in items] == [1, 3]
    feeds = task.collate(items)
    assert feeds["input_ids"].shape == (4, 8)
    numbers_BTC = np.arange(4 * 8 * 2, dtype=np.float32).reshape(4, 8, 2)
    short, long = task.split_batch({"logits": numbers_BTC}, items)
    np.testing.assert_array_equal(short.numbers, numbers_BTC[0, :3])
    assert [len(row) for row in long.rows] == [part.length for part in items[1].parts]
    np.testing.assert_array_equal(long.rows[1], numbers_BTC[2, : items[1].parts[1].length])


def test_a_text_may_take_so_many_windows(task: TokenClassification) -> None:
    """The error names windows and limit; a text that may be cut keeps its first window."""
    with pytest.raises(InvalidRequest, match="text takes 3 windows of 8 tokens, the limit is 2"):
        task.rows_of(EntityText(LONG), truncate=False, field="text", max_rows=2)
    cut = task.rows_of(EntityText(LONG), truncate=True, field="text", max_rows=2)
    assert (cut.rows, cut.truncated) == (1, True)
    with pytest.raises(InvalidRequest, match="text is empty"):
        task.rows_of(EntityText(" "), truncate=False, field="text", max_rows=2)


class GoldenExample:
    """A golden example of one text."""

    def __init__(self, text: str, ids: list[int], logits: list[float]) -> None:
        self.inputs, self.tensors, self.outputs = {"text": text}, {"input_ids": ids}, {"logits": logits}


class Allowed:
    """A tolerance."""

    max_abs_logit_difference, labels_must_agree = 0.1, True


def test_golden_examples_prove_ids_and_numbers(task: TokenClassification) -> None:
    """Other ids, numbers beyond the tolerance, and another label are told apart."""
    item = task.rows_of(EntityText("ada lived"), truncate=False, field="text", max_rows=2)
    ids = golden_tensors(item)["input_ids"]
    numbers_TC = np.array([[0, 1], [2, 0], [0, 3], [1, 0]], dtype=np.float32)
    golden = GoldenExample("ada lived", ids, numbers_TC.ravel().tolist())
    assert task.golden_item(golden).parts[0].ids == ids
    (result,) = task.split_batch({"logits": numbers_TC[None] + 0.05}, [item])
    assert task.golden_difference(golden, result, Allowed()) == pytest.approx(0.05)
    (result,) = task.split_batch({"logits": numbers_TC[None] + 0.5}, [item])
    with pytest.raises(TaskError, match=r"logits differ by 0.5, the manifest allows 0.1"):
        task.golden_difference(golden, result, Allowed())
    with pytest.raises(TaskError, match="other input_ids than in training"):
        task.golden_item(GoldenExample("ada lived", [1, 2], []))
