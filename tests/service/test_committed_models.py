"""The models in the repository, as a fresh clone serves them."""

import os
from collections.abc import Iterator

import httpx
import pytest
import sacrebleu

from load_tests.material import OWN_PAIRS, load_images
from tests.conftest import ROOT, Server, running_server

EVERYDAY = [line.split("\t") for line in (ROOT / "tests/data/everyday_sentiment.tsv").read_text().splitlines()]


@pytest.fixture(scope="module")
def fresh() -> Iterator[Server]:
    """A server on the repository's own store."""
    with running_server(ROOT / "model_store") as server:
        yield server


def test_every_committed_model_is_ready(fresh: Server) -> None:
    """Checksums, golden replay, tokenizer: none is left out."""
    answer = httpx.get(f"{fresh.http}/readyz")
    assert (answer.status_code, answer.json()["not_served"]) == (200, {})


@pytest.mark.parametrize(("model", "floor"), [("sentiment", 0.87), ("sentiment-small", 0.82)])
def test_everyday_sentences_are_mostly_understood(fresh: Server, model: str, floor: float) -> None:
    """Trained on lower-cased treebank text, asked in everyday spelling: their cards say how often they are right."""
    texts = [text for _, text in EVERYDAY]
    answers = httpx.post(f"{fresh.http}/models/{model}", json={"inputs": texts}, timeout=60).json()
    right = sum(answer[0]["label"] == label for answer, (label, _) in zip(answers, EVERYDAY, strict=True))
    assert right / len(EVERYDAY) > floor


@pytest.mark.parametrize("model", ["translation-en-de", "translation-en-de-int8"])
def test_everyday_sentences_are_translated(fresh: Server, model: str) -> None:
    """Sentences of our own, which the model has not been trained on, come close to our translations of them."""
    pairs = [line.split("\t") for line in OWN_PAIRS.read_text().splitlines()]
    body = {"inputs": [english for english, _ in pairs], "parameters": {"num_beams": 4}}
    answers = httpx.post(f"{fresh.http}/models/{model}", json=body, timeout=60).json()
    translations = [answer["translation_text"] for answer in answers]
    assert sacrebleu.corpus_chrf(translations, [[german for _, german in pairs]]).score > 80


def test_images_are_recognised(fresh: Server) -> None:
    """The first images of the test split, sent as files."""
    if not os.environ.get("HEED_DATASETS"):
        pytest.skip("HEED_DATASETS is not set: CIFAR-10 is not at hand")
    images = load_images(200)
    with httpx.Client(base_url=fresh.http) as http:
        headers = {"content-type": "image/png"}
        answers = [http.post("/models/cifar10-vit", content=file, headers=headers).json() for file in images.files]
    right = sum(answer[0]["label"] == label for answer, label in zip(answers, images.labels, strict=True))
    assert right / len(images.labels) > 0.84


def test_the_everyday_sentences_are_even_and_unlike_each_other() -> None:
    """As many good as bad ones, none twice."""
    labels = [label for label, _ in EVERYDAY]
    assert labels.count("POSITIVE") == labels.count("NEGATIVE") >= 100
    assert len({text for _, text in EVERYDAY}) == len(EVERYDAY)
