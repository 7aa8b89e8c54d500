"""Changes of a recipe by KEY=VALUE."""

import re

import pytest

from export.recipes.files import built_in_recipes
from export.tasks.settings import keys_of, with_changes
from export.tasks.task import trained_task_of
from export.training.text_recipes import TextTrainConfig


def test_set_changes_fields_of_run_and_network() -> None:
    """Values are converted to the types of the fields."""
    changes = ["epochs=3", "model.d_model=64", "learning_rate=1e-2", "model.embedding_norm=true"]
    changed = with_changes(TextTrainConfig(), changes)
    assert (changed.epochs, changed.model.d_model, changed.learning_rate) == (3, 64, 0.01)
    assert changed.model.embedding_norm is True


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("epoch=3", "--set epoch: there is no such key; there are epochs=INTEGER, "),
        ("model.d_modl=3", "--set model.d_modl: there is no such key; there are model.d_model=INTEGER, "),
        ("model=3", "--set model: there is no such key; there are "),
        ("model.model.d_model=3", "--set model.model.d_model: there is no such key; there are model.d_model=INTEGER, "),
        ("epochs", "--set takes KEY=VALUE, not 'epochs'; there are epochs=INTEGER, "),
        ("epochs=many", "--set epochs: takes a whole number, not 'many'"),
        ("epochs=3.5", "--set epochs: takes a whole number, not '3.5'"),
        ("learning_rate=nan", "--set learning_rate: takes a number, not 'nan'"),
        ("model.embedding_norm=no", "--set model.embedding_norm: takes true or false, not 'no'"),
        ("model.pooling=mx", "--set model.pooling: takes one of max, mean, cls, not 'mx'"),
    ],
)
def test_a_wrong_change_names_the_key_and_what_it_takes(change: str, expected: str) -> None:
    """An unknown key lists all keys, the closest first, each with the kind of its values."""
    with pytest.raises(ValueError, match=re.escape(expected)) as raised:
        with_changes(TextTrainConfig(), [change])
    if "there are" in expected:
        assert [key for key in keys_of(TextTrainConfig()) if f" {key}=" not in str(raised.value)] == []


def test_every_recipe_lists_its_keys() -> None:
    """Networks of all kinds have types that have a name."""
    for recipe in built_in_recipes().values():
        config = trained_task_of(recipe.task).configuration(recipe)
        with pytest.raises(ValueError, match="there are .*epochs=INTEGER"):
            with_changes(config, ["nothing=1"])
