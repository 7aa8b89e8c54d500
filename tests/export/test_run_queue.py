"""Lists of runs, and changes of a recipe."""

from pathlib import Path

import pytest

from export.run_queue import RECIPES, Run, read_queue, with_changes
from export.train_text_classifier import TextTrainConfig

ROOT_QUEUE = Path(__file__).parents[2] / "export" / "queue.toml"


def test_the_queue_of_the_repository_is_sound() -> None:
    """Its recipes exist, their changes too, and every recipe is in it."""
    runs = read_queue(ROOT_QUEUE)
    assert {run.recipe for run in runs} == set(RECIPES)


def test_a_wrong_queue_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    """Unknown recipes, fields and keys, missing and double names."""
    path = tmp_path / "queue.toml"
    sound = 'name = "a"\nrecipe = "sentiment"\n'
    path.write_text(f'[[run]]\n{sound}set = ["seed=2"]\n')
    assert read_queue(path) == [Run("a", "sentiment", ["seed=2"])]
    for wrong in (
        f"[[run]]\n{sound}[[run]]\n{sound}",
        '[[run]]\nname = "a"\n',
        f"[[run]]\n{sound}epochs = 3\n",
        f'[[run]]\n{sound}set = ["epoch=3"]\n',
        '[[run]]\nname = "a"\nrecipe = "sentimental"\n',
    ):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=r"run|--set|recipe"):
            read_queue(path)


def test_the_recipe_is_changed_by_name() -> None:
    """Fields of the run and of the network; anything else is refused."""
    changes = ["epochs=3", "model.d_model=64", "learning_rate=1e-2", "model.embedding_norm=true"]
    changed = with_changes(TextTrainConfig(), changes)
    assert (changed.epochs, changed.model.d_model, changed.learning_rate) == (3, 64, 0.01)
    assert changed.model.embedding_norm is True
    for wrong in ("epoch=3", "model.width=3", "epochs", "epochs=many", "model.embedding_norm=no"):
        with pytest.raises(ValueError, match=r"--set|invalid literal"):
            with_changes(TextTrainConfig(), [wrong])
