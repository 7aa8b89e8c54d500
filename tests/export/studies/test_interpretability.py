"""The study of explanations on a small committed model, and the committed page."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from export.data.sets.texts import load_everyday
from export.studies import interpretability
from export.studies.explained_answers import TextModel, features_of_tokens
from export.studies.explanation_figures import RANDOM
from export.studies.interpretability import Study, measure, summary
from export.studies.interpretability_page import page, write_page
from service.explanation.methods.features import Words
from tests.conftest import ROOT

SMALL = ROOT / "model_store/sentiment-small/1"


def study_of(texts: list[str]) -> Study:
    """Build a study of these texts with the small model."""
    return Study(
        "small",
        "our own",
        TextModel,
        lambda: (texts, [0] * len(texts)),
        lambda model: iter(()),
        lambda answer, outputs: {"self": {"entropy": np.ones((2, 2))}},
    )


def test_tokens_belong_to_the_feature_that_removes_them() -> None:
    """Special tokens belong to none."""
    words = Words("a bcd!", range(5), [None, (0, 1), (2, 4), (4, 5), (5, 6)])
    assert features_of_tokens(words, 5).tolist() == [-1, 0, 1, 1, 2]


def test_an_interrupted_study_resumes(tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three calls give the same figures as one, except for times.

    No example is measured twice or taken from another model.
    """
    monkeypatch.setattr(interpretability, "REPEATED", ((None, 2),))
    study = study_of([text for text in load_everyday().texts if len(text) < 40][:12])
    whole = measure(study, SMALL, tmp_path / "whole.jsonl", quiet, math.inf, 4)
    assert whole is not None
    pieces = tmp_path / "pieces.jsonl"
    assert measure(study, SMALL, pieces, quiet, 0.0, 4) is None
    assert measure(study, SMALL, pieces, quiet, math.inf, 2) is not None
    found = measure(study, SMALL, pieces, quiet, math.inf, 4)
    assert found is not None
    assert [one["place"] for one in found] == [one["place"] for one in whole]
    for one, other in zip(found, whole, strict=True):
        assert {**one, "cpu_s": 0} == {**other, "cpu_s": 0}
    assert [bool(one["repeated"]) for one in found] == [True, True, False, False]
    lines = pieces.read_text().splitlines()
    pieces.write_text("\n".join([lines[0].replace('"seed": 1', '"seed": 2'), *lines[1:]]) + "\n")
    assert measure(study, SMALL, pieces, quiet, 0.0, 4) is None
    means = summary(whole)
    assert means["areas"][RANDOM]["deletion"]["less_random"] == {"mean": 0.0, "half_width": 0.0}
    assert means["scores"][0] == pytest.approx(np.mean([one["scores"][0] for one in whole]))


def committed() -> Any:
    """Read the record in docs/."""
    return json.loads((ROOT / "docs/interpretability.json").read_text())


def test_the_committed_page_is_written_from_the_record() -> None:
    """No figure is typed by hand, and every picture exists."""
    text = "\n".join(page(committed())) + "\n"
    assert (ROOT / "docs/interpretability.md").read_text() == text
    pictures = {name for name in text.replace(")", "(").split("(") if name.endswith(".png")}
    assert pictures == {path.name for path in (ROOT / "docs").glob("interpretability-*.png")}


def test_the_record_has_enough_examples_and_no_data_set_content() -> None:
    """There are at least 200 examples of each model; all shown sentences and pictures are our own."""
    own = {*load_everyday().texts, *interpretability.OWN_SENTENCES, *interpretability.demo_images()}
    for model in committed()["models"].values():
        assert model["num_examples"] >= 200
        assert {one["given"] for one in model["shown"]} <= own
        assert not any(commit.endswith("-dirty") for commit in model["commits"])


@pytest.mark.slow
def test_page_and_pictures_are_written_from_the_record(tmp_path: Path, quiet: Console) -> None:
    """Writes all of them again from the committed record."""
    shutil.copyfile(ROOT / "docs/interpretability.json", tmp_path / "interpretability.json")
    write_page(tmp_path, quiet)
    drawn, kept = (
        sorted(path.name for path in folder.glob("interpretability*")) for folder in (tmp_path, ROOT / "docs")
    )
    assert drawn == kept
