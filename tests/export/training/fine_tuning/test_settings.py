"""The choice of a recipe by rows and start."""

from importlib.util import find_spec

import pytest

from export.networks.bert_weights import MINILM_PACKAGE
from export.recipes.files import built_in_recipe
from export.training.fine_tuning.settings import FEW_ROWS, MANY_ROWS, EncoderShape, recipe_for

SMALL = "text-minilm" if find_spec(MINILM_PACKAGE) else "text-scratch"


@pytest.mark.parametrize(
    ("num_rows", "start_from", "expected"),
    [
        (FEW_ROWS - 1, "", f"{SMALL}-few-rows"),
        (FEW_ROWS, "", SMALL),
        (MANY_ROWS, "", "text-scratch"),
        (MANY_ROWS, "minilm", "text-minilm"),
        (10, "scratch", "text-scratch-few-rows"),
        (10, "models/mine", "text-encoder-few-rows"),
        (MANY_ROWS, "models/mine", "text-encoder"),
    ],
)
def test_the_recipe_follows_from_rows_and_start(num_rows: int, start_from: str, expected: str) -> None:
    """It exists, is for any data, and the reason has the number of rows."""
    name, why = recipe_for(num_rows, start_from)
    assert name == expected
    assert f"{num_rows:,} training rows" in why
    assert built_in_recipe(name).data == ""


def test_a_shape_that_cannot_be_built_is_refused() -> None:
    """Each head gets equally many dimensions."""
    with pytest.raises(ValueError, match="d_model 30 is not a multiple of num_heads 4"):
        EncoderShape(d_model=30)
