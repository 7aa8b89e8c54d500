"""The study of explanations, on the small committed model and sentences of our own, and the page that is committed."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from export.data.text_classification import load_everyday
from export.studies import interpretability
from export.studies.explained_answers import TextModel, features_of_tokens
from export.studies.explanation_figures import RANDOM
from export.studies.interpretability import Study, measure, summary
from export.studies.interpretability_page import page, write_page
from service.explanation.methods.features import Words
from tests.conftest import ROOT

SMALL = ROOT / "model_store/sentiment-small/1"


def study_of(texts: list[str]) -> Study:
    """These texts by the small model."""
    return Study(
        "small",
        "our own",
        TextModel,
        lambda: (texts, [0] * len(texts)),
        lambda model: iter(()),
        lambda answer, outputs: {"self": {"entropy": np.ones((2, 2))}},
    )


def test_tokens_belong_to_the_feature_that_they_leave_with() -> None:
    """Special tokens to none."""
    words = Words("a bcd!", range(5), [None, (0, 1), (2, 4), (4, 5), (5, 6)])
    assert features_of_tokens(words, 5).tolist() == [-1, 0, 1, 1, 2]


def test_a_study_goes_on_where_it_stopped(tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same figures in one piece and in three, but for the time; none of an example twice, or of another model."""
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
    """The record in docs/."""
    return json.loads((ROOT / "docs/interpretability.json").read_text())


def test_the_committed_page_is_the_records() -> None:
    """No figure is typed by hand, and every picture is there."""
    text = "\n".join(page(committed())) + "\n"
    assert (ROOT / "docs/interpretability.md").read_text() == text
    pictures = {name for name in text.replace(")", "(").split("(") if name.endswith(".png")}
    assert pictures == {path.name for path in (ROOT / "docs").glob("interpretability-*.png")}


def test_the_record_has_enough_examples_and_none_of_a_data_set() -> None:
    """At least 200 of each model; what is shown are sentences and pictures of our own."""
    own = {*load_everyday().texts, *interpretability.OWN_SENTENCES, *interpretability.demo_images()}
    for model in committed()["models"].values():
        assert model["num_examples"] >= 200
        assert {one["given"] for one in model["shown"]} <= own
        assert not any(commit.endswith("-dirty") for commit in model["commits"])


@pytest.mark.slow
def test_the_pictures_are_drawn(tmp_path: Path, quiet: Console) -> None:
    """Page and all pictures anew out of the committed record."""
    shutil.copyfile(ROOT / "docs/interpretability.json", tmp_path / "interpretability.json")
    write_page(tmp_path, quiet)
    drawn, kept = (
        sorted(path.name for path in folder.glob("interpretability*")) for folder in (tmp_path, ROOT / "docs")
    )
    assert drawn == kept
