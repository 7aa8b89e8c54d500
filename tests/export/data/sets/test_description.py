"""Descriptions of data sets: they are complete, and found by key and by name."""

from pathlib import Path

import pytest

from export.data.sets.description import data_set, data_set_named, data_sets
from export.recipes.files import built_in_recipes
from export.task_table import TASKS


def test_every_recipe_names_a_data_set_of_its_task() -> None:
    """A recipe with another task's data could not be trained."""
    for recipe in built_in_recipes().values():
        if recipe.data:
            assert data_set(recipe.data, recipe.task).task == recipe.task


def test_data_sets_are_found_by_key_and_by_the_name_of_records() -> None:
    """Every description belongs to a task, and no two share a name."""
    described = [each for task in TASKS for each in data_sets(task)]
    assert len({each.name for each in described}) == len(described) >= 5
    for each in described:
        assert data_set_named(each.name, each.task) == data_set(each.key, each.task) == each
    assert data_set_named("mine", "translation") is None
    with pytest.raises(ValueError, match="there is no data set 'multi31k' for translation; there are multi30k, "):
        data_set("multi31k", "translation")


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set that is on no hub needs HEED_DATASETS; with it, its folder must be there."""
    monkeypatch.delenv("HEED_DATASETS", raising=False)
    with pytest.raises(FileNotFoundError, match="set HEED_DATASETS to the folder with tatoeba-en-de"):
        data_set("tatoeba", "translation").read()
    monkeypatch.setenv("HEED_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no folder .*tatoeba-en-de"):
        data_set("tatoeba", "translation").read()
