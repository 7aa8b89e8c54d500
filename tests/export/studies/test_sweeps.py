"""Tables of many runs: transfer by number of examples, and the sweep by shape."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from export.studies.model_report import report
from export.studies.sweeps import Setting, pareto_front, swept_settings


@pytest.fixture
def record(toy_run: Path) -> dict[str, Any]:
    """A real run's record."""
    found: dict[str, Any] = json.loads((toy_run / "result.json").read_text())
    return found


def with_accuracy(record: dict[str, Any], accuracy: float, **changes: Any) -> dict[str, Any]:
    """Copy the record with another accuracy; `layers` and `width` change the shape."""
    changed = copy.deepcopy(record)
    changed["quality"]["accuracy"] = accuracy
    shape = changed["config"]["model"]
    shape["num_layers"] = changes.pop("layers", shape["num_layers"])
    shape["d_model"] = changes.pop("width", shape["d_model"])
    changed["config"] |= {name: changes.pop(name) for name in list(changes) if name in changed["config"]}
    return changed | changes


def page_of(records: dict[str, dict[str, Any]], docs: Path, quiet: Console) -> str:
    """Write the page of these records with `report`."""
    (docs / "runs").mkdir(parents=True)
    for name, record in records.items():
        (docs / "runs" / f"{name}.json").write_text(json.dumps(record))
    report(docs / "nothing", docs, docs / "nothing", quiet)
    return (docs / "models.md").read_text()


def test_transfer_has_a_row_for_each_start_and_a_column_for_each_size(
    record: dict[str, Any], tmp_path: Path, quiet: Console
) -> None:
    """Cells are means over seeds; the last column has the run on all data; single runs are not listed."""
    records = {
        f"transfer-{start}-seed{seed}": with_accuracy(
            record, accuracy, start_from=start, seed=seed, num_training_examples=100
        )
        for start, accuracies in {"minilm": (0.8, 0.84), "scratch": (0.5, 0.6)}.items()
        for seed, accuracy in enumerate(accuracies)
    }
    records["sentiment"] = with_accuracy(record, 0.7, start_from="scratch", num_training_examples=1000)
    records["sentiment-distilled"] = with_accuracy(record, 0.9, start_from="minilm-words", num_training_examples=1000)
    page = page_of(records, tmp_path, quiet)
    assert "| start | 100 | 1,000 |" in page
    assert "| MiniLM, pre-trained | 82.00 (80.00 to 84.00, n = 2) |  |" in page
    assert "| the small transformer from random weights | 55.00 (50.00 to 60.00, n = 2) | 70.00 |" in page
    assert "runs/transfer-minilm" not in page
    assert "runs/sentiment.json" in page
    assert (tmp_path / "models-sentiment-transfer.png").exists()
    assert not (tmp_path / "models-sentiment-sweep.png").exists()


def sweep_of(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Make records of two widths by two depths, two seeds each; depth improves accuracy, width does not."""
    return {
        f"sweep-{layers}-{width}-seed{seed}": with_accuracy(
            record, 0.7 + 0.05 * layers + 0.01 * seed, layers=layers, width=width, num_parameters=layers * width
        )
        for layers in (1, 2)
        for width in (64, 128)
        for seed in (1, 2)
    }


def test_the_sweep_states_the_effect_of_each_dimension(record: dict[str, Any], tmp_path: Path, quiet: Console) -> None:
    """The effect of another seed stands beside it, and latency where it was measured."""
    records = sweep_of(record)
    served = {
        name: {"p50_ms": float(name.split("-")[1]), "requests_per_s": 500.0} for name in records if "seed1" in name
    }
    serving = {"command": "x", "commit": "abc", "machine": "m", "rounds": 3, "users": 64, "steal_s": 0.0, "wall_s": 9.0}
    (tmp_path / "serving.json").write_text(json.dumps(serving | {"models": served}))
    page = page_of(records, tmp_path, quiet)
    assert "| 1 x 64, 4 heads | 0.00 M | 76.50 (76.00 to 77.00, n = 2) |" in page
    assert "| num_layers | 1 | 2 | 2 | +5.00 (+5.00 to +5.00) | 2.00 |" in page
    assert "| d_model | 64 | 128 | 2 | +0.00 (+0.00 to +0.00) | 1.00 |" in page
    assert "differ by 1.00 points on average" in page
    # Means 76.5 and 81.5, twice each; two seeds that lie 1 apart have variance 0.5, their mean half of it.
    assert (
        "accuracies of all settings (n = 4) have a standard deviation of 2.89 points; differences between seeds alone"
        " would give 0.50 points."
    ) in page
    assert (
        "accuracies of the settings wider than 64 (n = 2) have a standard deviation of 3.54 points; differences between"
        " seeds alone would give 0.50 points."
    ) in page
    assert (tmp_path / "models-sentiment-sweep.png").exists()


def test_the_front_has_the_settings_that_no_other_beats(record: dict[str, Any]) -> None:
    """Cost is the number of parameters where no latency was measured."""
    settings = swept_settings(sweep_of(record), {})
    assert pareto_front(settings) == {Setting(1, 4, 64), Setting(2, 4, 64)}
    assert settings[Setting(2, 4, 64)].p50_ms is None
