"""The page of the models, from a real run's record."""

import json
import shutil
from pathlib import Path

from rich.console import Console

from export.report import report


def test_the_page_has_the_figures_of_the_records(toy_run: Path, tmp_path: Path, quiet: Console) -> None:
    """A finished run is taken over and kept; an unfinished one is not there; the page outlives the run folders."""
    runs, docs = tmp_path / "runs", tmp_path / "docs"
    shutil.copytree(toy_run, runs / "toy")
    (runs / "unfinished").mkdir()
    report(runs, docs, quiet)
    record = json.loads((docs / "runs" / "toy.json").read_text())
    page = (docs / "models.md").read_text()
    for figure in (
        f"{100 * record['quality']['accuracy']:.2f}",
        f"{record['quality']['f1_macro']:.4f}",
        record["commit"],
        record["hardware"],
    ):
        assert figure in page
    assert "unfinished" not in page
    assert sorted(path.suffix for path in docs.glob("*.png")) == [".png", ".png"]
    report(tmp_path / "nothing", docs, quiet)
    assert (docs / "models.md").read_text() == page
