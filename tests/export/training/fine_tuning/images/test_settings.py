"""The size of the images for a network from scratch, the recipe by their number, and shapes."""

import pytest

from export.recipes.files import built_in_recipe
from export.tasks.image_classification import TASK
from export.training.fine_tuning.images.settings import ImageShape, recipe_for, side_for


@pytest.mark.parametrize(
    ("median", "side"), [([28, 28], 32), ([32, 20], 32), ([480, 640], 64), ([5, 9], 16), ([41, 40], 40)]
)
def test_the_side_is_the_middle_size_within_bounds(median: list[int], side: int) -> None:
    """It is a multiple of 8, so that patches of 4 and 8 pixels fit."""
    assert side_for({"median": median}) == side


@pytest.mark.parametrize(
    ("num_images", "start_from", "name"),
    [
        (100, "", "images-scratch-few"),
        (5_000, "scratch", "images-scratch"),
        (100, "some/folder", "images-encoder"),
    ],
)
def test_a_recipe_is_chosen_and_can_be_read(num_images: int, start_from: str, name: str) -> None:
    """Its settings exist."""
    found, why = recipe_for(num_images, start_from)
    assert (found, bool(why)) == (name, True)
    assert TASK.configuration(built_in_recipe(name)).epochs > 1


def test_a_width_that_is_no_multiple_of_the_heads_is_refused() -> None:
    """The sentence names both."""
    with pytest.raises(ValueError, match="d_model 30 is not a multiple of num_heads 4"):
        ImageShape(d_model=30)
