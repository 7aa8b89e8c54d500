"""Small random Hugging Face models answer like `transformers` after conversion."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    FNetConfig,
    FNetForSequenceClassification,
)

from export.conversion.checkpoints.reading import LoadRefused
from export.conversion.golden_texts import made_up_sentences
from export.conversion.text_checkpoint import classifier_of_hugging_face
from tests.conftest import ROOT, running_server
from tests.export.conversion.outputs import onnx_logits
from tests.export.conversion.random_checkpoints import FAMILIES, save_model

# One of each in every run.
SLOW = {kind: [pytest.mark.slow] for kind in ("bert", "roberta")}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=SLOW.get(kind, [])) for kind in FAMILIES])
def test_a_loaded_model_answers_like_transformers(kind: str, tmp_path: Path) -> None:
    """The command writes a folder; its graph, fed in padded batches, equals transformers text by text."""
    model_dir = save_model(kind, tmp_path / "mine")
    command = [sys.executable, "-m", "export", "load", str(model_dir), "--task", "text-classification"]
    run = subprocess.run(
        [*command, "--model-store", str(tmp_path / "store")], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    folder = tmp_path / "store/mine/1"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["labels"] == ["bad", "mixed", "good"]
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(model_dir).eval(),
        AutoTokenizer.from_pretrained(model_dir),
    )
    texts = made_up_sentences(60, seed=9)
    with torch.inference_mode():
        expected = [
            model(
                **tokenizer(text, truncation=True, max_length=64, return_tensors="pt", return_token_type_ids=False)
            ).logits[0]
            for text in texts
        ]
    reference_BC = torch.stack(expected).numpy()
    assert np.ptp(reference_BC, axis=0).min() > 0.1  # the texts do differ
    source = classifier_of_hugging_face(str(model_dir))
    np.testing.assert_allclose(onnx_logits(source, folder / "model.onnx", texts), reference_BC, atol=1e-4)
    with running_server(tmp_path / "store") as server:
        request = urllib.request.Request(f"{server.http}/models/mine", json.dumps({"inputs": texts[0]}).encode())
        with urllib.request.urlopen(request, timeout=10) as response:
            (scores,) = json.load(response)
    assert scores[0]["label"] == manifest["labels"][int(reference_BC[0].argmax())]


def load(model_dir: Path, store: Path, *options: str) -> str:
    """Run the command, and return its error."""
    command = [sys.executable, "-m", "export", "load", str(model_dir), "--task", "text-classification"]
    run = subprocess.run(
        [*command, "--model-store", str(store), *options], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 1
    assert not list(store.glob("*/*"))
    return run.stderr


@pytest.mark.slow
def test_validation_needs_the_models_own_classes(tmp_path: Path) -> None:
    """SST-2's class 0 is not class 0 of a model with three other classes.

    A name that leaves the store is refused too.
    """
    if not os.environ.get("HEED_DATASETS"):
        pytest.skip("HEED_DATASETS is not set: SST-2 is not at hand")
    model_dir = save_model("bert", tmp_path / "mine")
    said = load(model_dir, tmp_path / "store", "--validate-on", "sst2")
    assert "sst2 has NEGATIVE, POSITIVE; this model has bad, mixed, good" in said
    assert "--name '../mine'" in load(model_dir, tmp_path / "store", "--name", "../mine")


def test_unsupported_models_are_refused_in_a_sentence(tmp_path: Path) -> None:
    """Refuses another family, and a missing folder."""
    config = FNetConfig(hidden_size=32, num_hidden_layers=1, intermediate_size=64)
    FNetForSequenceClassification(config).save_pretrained(tmp_path / "other")
    with pytest.raises(LoadRefused, match="model type 'fnet' is not one of bert, distilbert, roberta"):
        classifier_of_hugging_face(str(tmp_path / "other"))
    with pytest.raises(LoadRefused, match="nowhere"):
        classifier_of_hugging_face(str(tmp_path / "nowhere"))
