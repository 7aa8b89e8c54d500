"""`huggingface_hub.InferenceClient` works unchanged with the URL of a model as its model."""

from pathlib import Path

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from export.conversion.golden_images import golden_images
from tests.conftest import LABELS, Server


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


def test_image_classification(image_server: Server, tmp_path: Path) -> None:
    """Images are sent as bytes, as a file, and with parameters as base64 in JSON."""
    client = InferenceClient(model=f"{image_server.http}/models/vit")
    file = golden_images()["a JPEG that EXIF turns upright"]
    (tmp_path / "turned.jpg").write_bytes(file)
    plain = client.image_classification(file)
    assert plain == client.image_classification(tmp_path / "turned.jpg")
    assert [entry.label for entry in plain] == [entry.label for entry in sorted(plain, key=lambda e: -e.score)]
    assert len(plain) == 5
    with_parameters = client.image_classification(file, top_k=7, function_to_apply="softmax")
    assert with_parameters[:5] == plain
    assert {entry.label for entry in with_parameters} == set(LABELS)
    with pytest.raises(HfHubHTTPError) as raised:
        client.image_classification(b"no image", top_k=1)
    error = raised.value.response.json()["error"]
    assert error == "inputs is not a JPEG, PNG or WebP file, or its header is damaged"


def test_translation(translation_server: Server) -> None:
    """Translations work with and without languages and search parameters; an error carries the server's text."""
    client = InferenceClient(model=f"{translation_server.http}/models/dogs")
    assert client.translation("three blue dogs").translation_text == "Hunde drei blaue"
    with_languages = client.translation(
        "three blue dogs", src_lang="en", tgt_lang="de", generate_parameters={"num_beams": 4}
    )
    assert with_languages.translation_text == "Hunde drei blaue"
    defaults = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "num_return_sequences": 1}
    for truncation in ("do_not_truncate", "longest_first", "only_first", "only_second"):
        plain = client.translation("three blue dogs", truncation=truncation, generate_parameters=defaults)
        assert plain.translation_text == "Hunde drei blaue"
    with pytest.raises(HfHubHTTPError) as raised:
        client.translation("three blue dogs", generate_parameters={"do_sample": True})
    error = raised.value.response.json()["error"]
    assert error == "parameter 'do_sample' is True; only false is offered, which changes nothing"
    with pytest.raises(HfHubHTTPError) as raised:
        client.translation("three blue dogs", src_lang="fr", tgt_lang="de")
    assert raised.value.response.json() == {"error": "src_lang is 'fr', the model supports only 'en'"}
