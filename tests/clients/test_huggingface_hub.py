"""`huggingface_hub.InferenceClient` works unchanged with the URL of a model as its model."""

import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from tokenizers import Tokenizer

from export.conversion.golden_images import golden_images
from tests.conftest import ROOT, Server
from tests.text_models import DIMENSIONS, mean_of_ids, tokenizer_json


def test_text_classification(server: Server) -> None:
    """Labels and scores come best first, top_k is respected, and an error carries the server's text."""
    client = InferenceClient(model=f"{server.http}/models/sentiment")
    best, other = client.text_classification("A wonderful film.")
    assert (best.label, other.label) == ("POSITIVE", "NEGATIVE")
    assert best.score > other.score
    assert len(client.text_classification("A wonderful film.", top_k=1)) == 1
    with pytest.raises(HfHubHTTPError) as raised:
        client.text_classification("")
    assert raised.value.response.json() == {"error": "inputs is empty"}


def test_vectors(text_server: Server) -> None:
    """Vectors are cut, scaled and computed behind a prompt; sentences are compared; an error carries the text."""
    client = InferenceClient(model=f"{text_server.http}/models/embedder")
    (vector,) = client.feature_extraction("a red dog", normalize=False, prompt_name="query")
    assert vector.shape == (DIMENSIONS,)
    ids = Tokenizer.from_str(tokenizer_json()).encode("query: a red dog").ids
    np.testing.assert_allclose(vector, mean_of_ids(ids, DIMENSIONS), atol=1e-6)
    (unit,) = client.feature_extraction("dog " * 40, normalize=True, truncate=True)
    assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-6)
    same, other = client.sentence_similarity("a red dog", other_sentences=["a red dog", "bird"])
    assert same == pytest.approx(1, abs=1e-6)
    assert other < same
    with pytest.raises(HfHubHTTPError) as raised:
        client.feature_extraction("dog", prompt_name="none")
    error = raised.value.response.json()["error"]
    assert error == "prompt_name 'none' is not known; the model has 'query', 'passage'"


def test_image_classification(committed_server: Server, tmp_path: Path) -> None:
    """Images are sent as bytes, as a file, and with parameters as base64 in JSON."""
    client = InferenceClient(model=f"{committed_server.http}/models/cifar10-vit")
    labels = json.loads((ROOT / "model_store/cifar10-vit/1/manifest.json").read_text())["labels"]
    file = golden_images()["a JPEG that EXIF turns upright"]
    (tmp_path / "turned.jpg").write_bytes(file)
    plain = client.image_classification(file)
    assert plain == client.image_classification(tmp_path / "turned.jpg")
    assert [entry.label for entry in plain] == [entry.label for entry in sorted(plain, key=lambda e: -e.score)]
    assert len(plain) == 5
    with_parameters = client.image_classification(file, top_k=10, function_to_apply="softmax")
    assert with_parameters[:5] == plain
    assert {entry.label for entry in with_parameters} == set(labels)
    with pytest.raises(HfHubHTTPError) as raised:
        client.image_classification(b"no image", top_k=1)
    error = raised.value.response.json()["error"]
    assert error == "inputs is not a JPEG, PNG or WebP file, or its header is damaged"


def test_translation(committed_server: Server) -> None:
    """Translations work with and without languages and search parameters; an error carries the server's text."""
    client = InferenceClient(model=f"{committed_server.http}/models/translation-en-de")
    text = "The dog is asleep."
    expected = client.translation(text).translation_text
    assert "Hund" in expected
    with_languages = client.translation(text, src_lang="en", tgt_lang="de", generate_parameters={"num_beams": 4})
    assert "Hund" in with_languages.translation_text
    defaults = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "num_return_sequences": 1}
    for truncation in ("do_not_truncate", "longest_first", "only_first", "only_second"):
        plain = client.translation(text, truncation=truncation, generate_parameters=defaults)
        assert plain.translation_text == expected
    with pytest.raises(HfHubHTTPError) as raised:
        client.translation(text, generate_parameters={"do_sample": True})
    error = raised.value.response.json()["error"]
    assert error == "parameter 'do_sample' is True; only false is offered, which changes nothing"
    with pytest.raises(HfHubHTTPError) as raised:
        client.translation(text, src_lang="fr", tgt_lang="de")
    assert raised.value.response.json() == {"error": "src_lang is 'fr', the model supports only 'en'"}
