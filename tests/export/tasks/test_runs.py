"""Lists of runs, and changes of a recipe."""

from pathlib import Path

import pytest
from rich.console import Console

from export.recipes.files import built_in_recipes
from export.tasks.runs import Run, read_queue, run_all, train_run
from export.training.run_folder import RunIsBusyError, sole_trainer

ROOT_QUEUE = Path(__file__).parents[3] / "export" / "queue.toml"


def test_the_committed_queue_is_valid() -> None:
    """Its recipes and changes exist, and it has every recipe that names its data."""
    runs = read_queue(ROOT_QUEUE)
    assert {run.recipe for run in runs} == {name for name, recipe in built_in_recipes().items() if recipe.data}


def test_a_wrong_queue_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    """Unknown recipes, fields and keys, and missing or double names, are refused."""
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


def test_a_queue_runs_in_order_and_skips_finished_runs(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finished folders are left alone without reading data; with no time left, nothing starts."""
    runs = [Run("first", "sentiment", []), Run("second", "sentiment", [])]
    (tmp_path / "first").symlink_to(toy_run)
    run_all(runs, tmp_path, Console(width=200), time_budget_s=0.0)
    assert "1 of 2 runs are unfinished" in capsys.readouterr().out
    (tmp_path / "second").symlink_to(toy_run)
    run_all(runs, tmp_path, Console(width=200), time_budget_s=60.0)
    assert "all 2 runs are finished" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_runs_of_another_process_are_skipped(toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs that learn from them are skipped too; later runs are trained."""
    console = Console(width=200)
    taught = Run("taught", "sentiment-distilled", ["teacher=busy"])
    runs = [Run("busy", "sentiment", []), taught, Run("done", "sentiment", [])]
    (tmp_path / "done").symlink_to(toy_run)
    with sole_trainer(tmp_path / "busy"):
        run_all(runs, tmp_path, console, time_budget_s=60.0)
        with pytest.raises(RunIsBusyError, match="another process is training in .*busy"):
            train_run(runs[0], tmp_path / "busy", console, time_budget_s=60.0)
    said = capsys.readouterr().out
    assert "has a finished run" in said
    assert "all but busy, taught are finished" in said
