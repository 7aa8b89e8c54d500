"""Answers of the committed float32 models do not depend on other rows of the batch.

Probabilities and scores of an item alone and in a batch differ by at most 1e-5, and translations are the same: in the
engine with adverse batches, and through a server with many concurrent clients.
"""

import base64
import io
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from export.conversion.golden_images import golden_images
from export.conversion.golden_texts import GOLDEN_TEXTS, made_up_sentences
from model_store.folder import FoundFolder
from service.models.golden_replay import decode
from service.models.loaded import DecoderModel, LoadedModel, OneCallModel
from service.models.loading import Loader
from service.tasks.classification import Classifier, scores_of
from service.tasks.decoding.search import SearchRequest
from service.tasks.images.image_classification import ImageClassification
from service.tasks.text.classification import TextClassification
from tests.conftest import ROOT, Server

MAX_DIFFERENCE = 1e-5
MAX_ROWS = 64
NUM_CLIENTS = 16

# Lengths from one word to the longest text, a single word over and over, unknown and rare pieces, capitals and marks.
ODD_TEXTS = [
    "a",
    "?!",
    "\u20ac \u4f60\u597d",
    "good " * 60,
    "zzyzx qwrt " * 12,
    "TERRIBLE!!! " * 20,
    "0 1 2 3 4 5 6 7 8 9 " * 6,
    "not " * 300,
]


def loaded_model(name: str) -> LoadedModel:
    """Load a committed model."""
    return Loader(MAX_ROWS, 1, time.thread_time).load(FoundFolder(name, "1", ROOT / "model_store" / name / "1"))


def image_file(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """Encode a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "PNG")
    return buffer.getvalue()


def odd_images() -> list[bytes]:
    """Make images of extreme content: black, white, pure colours, a fine chequerboard, noise, one bright pixel."""
    black = np.zeros((32, 32, 3), np.uint8)
    board, pixel = black.copy(), black.copy()
    board[::2, ::2] = board[1::2, 1::2] = 255
    pixel[7, 9] = 255
    colours = [black + np.array(colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    noise = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    return [image_file(pixels) for pixels in (black, black + 255, board, pixel, *colours, *noise)]


def companies(items: Sequence[Any], length: Callable[[Any], int]) -> Iterator[list[Any]]:
    """Make engine calls of up to 64 rows: pairs with the longest and shortest item, mixtures, and equal items."""
    by_length = sorted(items, key=length)
    shortest, longest = by_length[0], by_length[-1]
    for item in items:
        yield [item, longest]
        yield [shortest, item]
    yield list(islice(cycle(items), MAX_ROWS))
    yield list(islice(cycle(reversed(by_length)), MAX_ROWS))
    yield [shortest, *[longest] * 7]
    yield [*[shortest] * (MAX_ROWS - 1), longest]


@pytest.mark.parametrize("name", ["sentiment-small", "cifar10-vit"])
def test_probabilities_do_not_depend_on_other_rows(name: str) -> None:
    """An item is alone, beside the longest and the shortest, and among 63 others of any length."""
    model = loaded_model(name)
    assert isinstance(model, OneCallModel)
    task, compute = model.task, model.run
    assert isinstance(task, Classifier)
    if isinstance(task, TextClassification):
        texts = [*ODD_TEXTS, *GOLDEN_TEXTS, *made_up_sentences(8)]
        items = [task.preprocess(text, truncate=True, field="text") for text in texts]
        assert (min(item.length for item in items), max(item.length for item in items)) == (3, 256)
    else:
        assert isinstance(task, ImageClassification)
        files = [*odd_images(), *golden_images().values()]
        items = [task.preprocess(file, field="image") for file in files]
    alone = {id(item): np.array(scores_of(compute([item])[0].tolist(), "softmax")) for item in items}
    compared = 0
    for company in companies(items, lambda item: item.length):
        for item, logits_C in zip(company, compute(company), strict=True):
            difference = np.abs(np.array(scores_of(logits_C.tolist(), "softmax")) - alone[id(item)]).max()
            assert difference <= MAX_DIFFERENCE, (item.length, len(company))
            compared += 1
    assert compared >= 4 * len(items) + 3 * MAX_ROWS


@pytest.mark.parametrize("num_beams", [1, 4])
def test_translations_do_not_depend_on_other_rows(num_beams: int) -> None:
    """A sentence has the same tokens and scores alone and in a running batch of 64 rows."""
    model = loaded_model("translation-en-de")
    assert isinstance(model, DecoderModel)
    request = SearchRequest(num_beams=num_beams, max_new_tokens=12)
    texts = ["a", "?!", "dogs " * 40, "Two children are playing in the snow.", "zzyzx qwrt " * 6, "A man. " * 20]
    texts += [text for text in GOLDEN_TEXTS if len(text.split()) < 40][:3]

    def translated(company: Sequence[str]) -> list[tuple[list[int], float]]:
        sentences = [model.task.preprocess(text, truncate=True, field="text", request=request) for text in company]
        decode(model.open_batches(), sentences)
        return [sentence.search.best() for sentence in sentences]

    alone = {text: translated([text])[0] for text in texts}
    shortest, longest = texts[0], max(texts, key=len)
    rows = MAX_ROWS // num_beams
    for company in (
        list(islice(cycle(texts), rows)),
        [longest] * (rows - 1) + [shortest],
        [shortest] * (rows - 1) + [longest],
    ):
        for text, (ids, score) in zip(company, translated(company), strict=True):
            assert ids == alone[text][0], text
            assert score == pytest.approx(alone[text][1], abs=MAX_DIFFERENCE), text


def test_answers_do_not_depend_on_other_clients(committed_server: Server) -> None:
    """16 concurrent clients get the answers that the same requests get one after another."""
    images = [base64.b64encode(file).decode() for file in odd_images()]
    requests = [("sentiment-small", "text", text, {"truncate": True}) for text in [*ODD_TEXTS, *GOLDEN_TEXTS]]
    requests += [("cifar10-vit", "image", image, {}) for image in images]
    requests += [
        ("translation-en-de", "text", text, {"num_beams": beams, "max_new_tokens": 16})
        for text in made_up_sentences(6)
        for beams in (1, 4)
    ]
    with httpx.Client(
        base_url=committed_server.http, timeout=120, limits=httpx.Limits(max_connections=NUM_CLIENTS)
    ) as http:

        def ask(request: tuple[str, str, str, dict[str, Any]]) -> dict[str, Any]:
            model, name, value, parameters = request
            tensor = {"name": name, "shape": [1], "datatype": "BYTES", "data": [value]}
            body = {"inputs": [tensor], "parameters": parameters}
            answer = http.post(f"/v2/models/{model}/infer", json=body)
            return {output["name"]: output["data"] for output in answer.raise_for_status().json()["outputs"]}

        alone = [ask(request) for request in requests]
        # Each client starts at another place, so that batches differ.
        together = [number for start in range(0, len(requests), 3) for number in (*range(start, len(requests)), start)]
        together = together[: 6 * len(requests)]
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            answers = list(pool.map(lambda number: ask(requests[number]), together))
    for number, answer in zip(together, answers, strict=True):
        assert answer.keys() == alone[number].keys()
        for name, expected in alone[number].items():
            if isinstance(expected[0], str):
                assert answer[name] == expected, requests[number]
            else:
                assert answer[name] == pytest.approx(expected, abs=MAX_DIFFERENCE), requests[number]
