"""The mean of several runs' weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from export.average import average_runs
from export.report import report
from export.run_folder import read_result
from export.source import source_of_run
from export.train_text_classifier import train_text_classifier
from tests.export.conftest import toy_config, toy_data


@pytest.fixture(scope="module")
def further_run(toy_run: Path, tmp_path_factory: pytest.TempPathFactory, quiet: Console) -> Path:
    """The same shape and tokenizer as the toy run, from the same random weights, trained with other dropout."""
    run_dir = tmp_path_factory.mktemp("runs") / "further"
    train_text_classifier(toy_data(), toy_config(token_dropout=0.1), run_dir, quiet)
    return run_dir


def test_the_mean_lies_between_its_members_and_is_measured(
    toy_run: Path, further_run: Path, tmp_path: Path, quiet: Console
) -> None:
    """Each weight is the mean, its accuracy its own, and the record tells of whom; the report shows it."""
    mean = tmp_path / "runs" / "mean"
    average_runs([toy_run, further_run], mean, toy_data(), quiet)
    one, other, middle = (load_file(folder / "model.safetensors") for folder in (toy_run, further_run, mean))
    for name in one:
        between = (one[name].astype(np.float32) + other[name].astype(np.float32)) / 2
        np.testing.assert_array_equal(middle[name], between.astype(np.float16))
    result = read_result(mean)
    assert result["mean_of"] == ["toy", "further"]
    assert result["quality"]["accuracy"] > 0.9
    assert result["training_s"] == pytest.approx(
        sum(read_result(run)["training_s"] for run in (toy_run, further_run)), abs=0.2
    )
    provenance = source_of_run(mean).provenance
    assert provenance["mean_of"] == ["toy", "further"]
    assert not {"seed", "best_epoch"} & provenance.keys()
    shutil.copytree(toy_run, tmp_path / "runs" / "toy")
    report(tmp_path / "runs", tmp_path / "docs", quiet)
    assert "mean of toy, further" in (tmp_path / "docs/models.md").read_text()
    before = (mean / "result.json").stat().st_mtime_ns
    average_runs([toy_run, further_run], mean, toy_data(), quiet)
    assert (mean / "result.json").stat().st_mtime_ns == before


def test_what_has_no_mean_is_refused(toy_run: Path, tmp_path: Path, quiet: Console) -> None:
    """One run alone, an unfinished one, another task, tokenizer or labels: named, and no folder is made."""
    mean, other = tmp_path / "mean", tmp_path / "other"
    with pytest.raises(ValueError, match="at least two runs"):
        average_runs([toy_run], mean, toy_data(), quiet)
    with pytest.raises(FileNotFoundError, match="other holds no finished run"):
        average_runs([toy_run, other], mean, toy_data(), quiet)
    shutil.copytree(toy_run, other)
    record = json.loads((other / "result.json").read_text())
    for changes, complaint in (
        ({"task": "translation"}, "a run of translation"),
        ({"labels": ["BAD", "GOOD"]}, "other labels"),
    ):
        (other / "result.json").write_text(json.dumps(record | changes))
        with pytest.raises(ValueError, match=complaint):
            average_runs([toy_run, other], mean, toy_data(), quiet)
    (other / "tokenizer.json").write_text("{}")
    (other / "result.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"tokenizer.json differs"):
        average_runs([toy_run, other], mean, toy_data(), quiet)
    assert not mean.exists()
