"""The files of recipes: their settings, and mistakes in them."""

import dataclasses
import json
from pathlib import Path

import pytest

from export.recipes.files import built_in_recipe, built_in_recipes, read_recipe
from export.tasks.task import trained_task_of
from tests.conftest import ROOT

# The settings of the recipes that the runs of docs/runs were trained with.
TRAINED = json.loads((ROOT / "tests" / "data" / "recipes.json").read_text())


@pytest.mark.parametrize("name", TRAINED)
def test_recipes_have_the_settings_that_the_committed_runs_were_trained_with(name: str) -> None:
    """Every value is compared, with its type; so are task, data set, network and description."""
    recipe, expected = built_in_recipe(name), TRAINED[name]
    task = trained_task_of(recipe.task)
    config = task.configuration(recipe)
    found = json.loads(json.dumps(dataclasses.asdict(config)))
    assert found == expected["config"]
    assert json.dumps(found, sort_keys=True) == json.dumps(expected["config"], sort_keys=True)
    assert (recipe.task, recipe.data, recipe.network, recipe.description) == tuple(
        expected[field] for field in ("task", "data", "network", "description")
    )
    assert isinstance(config.model, task.networks[recipe.network][1])


def test_every_recipe_can_be_configured() -> None:
    """A recipe with a mistake would be found only when somebody trains it."""
    recipes = built_in_recipes()
    assert TRAINED.keys() <= recipes.keys()
    for recipe in recipes.values():
        assert recipe.description
        assert trained_task_of(recipe.task).configuration(recipe)


SOUND = """task = "text-classification"
network = "transformer"
[training]
{training}
[model]
vocab_size = 100
{model}
"""


def test_a_recipe_of_ones_own_needs_only_what_it_changes(tmp_path: Path) -> None:
    """Whole numbers are taken where numbers are wanted; everything else has the defaults of the task."""
    path = tmp_path / "mine.toml"
    path.write_text(SOUND.format(training="learning_rate = 1", model="d_model = 8\nnum_heads = 2"))
    recipe = read_recipe(path)
    config = trained_task_of(recipe.task).configuration(recipe)
    assert (type(config.learning_rate), config.learning_rate, config.model.d_model) == (float, 1.0, 8)
    assert (recipe.data, str(path) in recipe.description) == ("", True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs = ", "mine.toml: Invalid value"),
        ('task = "haiku"\nnetwork = "transformer"', "there is no task 'haiku'; there are text-classification"),
        ('task = "translation"', "mine.toml has no network"),
        ('tsk = "translation"', "a recipe has no field 'tsk'; it has task, "),
        ("task = 3", "task must be a text, not 3"),
        ("training = 3", "training must be a table, not 3"),
        ('task = "translation"\nnetwork = "vit"', "translation has no network 'vit'; there are "),
        (SOUND.format(training="epoch = 3", model=""), "[training] has no setting 'epoch'; it has epochs, "),
        (SOUND.format(training="epochs = 3.5", model=""), "[training] epochs takes a whole number, not 3.5"),
        (SOUND.format(training="learning_rate = nan", model=""), "[training] learning_rate takes a number, not nan"),
        (SOUND.format(training="epochs = true", model=""), "[training] epochs takes a whole number, not True"),
        (SOUND.format(training="", model="pooling = 'mx'"), "[model] pooling takes one of max, mean, cls, not 'mx'"),
        (SOUND.format(training="", model="num_heads = 3"), "[model]: d_model 128 is not a multiple of num_heads 3"),
        ('task = "text-classification"\nnetwork = "transformer"', "[model] lacks vocab_size"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_file_and_the_field(text: str, expected: str, tmp_path: Path) -> None:
    """The message says what there is, the closest first."""
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match="mine.toml") as raised:
        trained_task_of(read_recipe(path).task).configuration(read_recipe(path))
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)
