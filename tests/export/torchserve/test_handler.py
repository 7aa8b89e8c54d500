"""The handler answers for archives of the committed models, called as TorchServe does."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ts.context import Context, RequestProcessor

from export.conversion.golden_images import golden_images
from export.torchserve.archive import Batching, Runtime, archive, newest_models
from export.torchserve.handler import Handler
from model_store.folder import FolderError, read
from tests.conftest import ROOT

MODELS = newest_models(ROOT / "model_store")
Load = Callable[..., Handler]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Runtime | None], Path]:
    """An archive's contents, as TorchServe unpacks them."""
    import shutil

    folders: dict[tuple[str, Runtime | None], Path] = {}

    def unpack(name: str, runtime: Runtime | None) -> Path:
        if (name, runtime) not in folders:
            into = tmp_path_factory.mktemp("archives")
            shutil.unpack_archive(archive(MODELS[name], into, Batching(batch_size=4), runtime), into / "files", "zip")
            folders[name, runtime] = into / "files"
        return folders[name, runtime]

    return unpack


@pytest.fixture
def load(unpacked: Callable[[str, Runtime | None], Path]) -> Load:
    """A handler of a committed model."""

    def load(name: str, runtime: Runtime | None = None) -> Handler:
        handler = Handler()
        handler.initialize(context_of(unpacked(name, runtime), name))
        return handler

    return load


def context_of(folder: Path, name: str, requests: int = 0) -> Context:
    """Make the context that TorchServe passes to a handler."""
    config = json.loads((folder / "model-config.yaml").read_text())
    context = Context(name, str(folder), {}, 4, None, "0.12.0", model_yaml_config=config)
    context.request_processor = [RequestProcessor({}) for _ in range(requests)]
    return context


def ask(handler: Handler, *bodies: bytes | dict[str, Any]) -> list[tuple[int, Any]]:
    """Return status and document for each request of a batch; bytes arrive as with TS_DECODE_INPUT_REQUEST=false."""
    context = Context("any", "", {}, 4, None, "0.12.0")
    context.request_processor = [RequestProcessor({}) for _ in bodies]
    given = [{"body": body if isinstance(body, bytes) else json.dumps(body).encode()} for body in bodies]
    answers = handler.handle(given, context)
    return [(context.get_response_status(n)[0] or 200, json.loads(answer)) for n, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("name", "runtime"), [("sentiment", None), ("sentiment-small", "torchscript"), ("sentiment-small", "onnx")]
)
def test_texts_get_the_golden_logits(load: Load, name: str, runtime: Runtime | None) -> None:
    """Requests alone and in a batch larger than an engine call get the same answers."""
    folder = read(MODELS[name])
    assert folder.manifest
    handler, labels = load(name, runtime), folder.manifest.labels
    allowed = pytest.approx(0, abs=folder.manifest.tolerance.max_abs_logit_difference)
    bodies = [
        {"inputs": example.inputs["text"], "parameters": {"function_to_apply": "none"}} for example in folder.golden
    ]
    together, alone = ask(handler, *bodies), [ask(handler, body)[0] for body in bodies]
    for answers in (together, alone):
        for example, (status, answer) in zip(folder.golden, answers, strict=True):
            assert status == 200
            logits = {each["label"]: each["score"] for each in answer[0]}
            for label, golden in zip(labels, example.outputs["logits"], strict=True):
                assert logits[label] - golden == allowed


def test_lists_and_parameters_are_those_of_the_task_api(load: Load) -> None:
    """The answer has the form of the service's HTTP API."""
    texts = ["A wonderful film.", "An awful, tedious mess."]
    parameters = {"top_k": 1, "function_to_apply": "none"}
    ((status, answer),) = ask(load("sentiment-small"), {"inputs": texts, "parameters": parameters})
    assert status == 200
    assert [[each["label"] for each in one] for one in answer] == [["POSITIVE"], ["NEGATIVE"]]
    assert answer[0][0]["score"] > 1  # a logit


def test_images_as_files_and_as_base64(load: Load) -> None:
    """Both forms of the same image get the same answer, with the five best classes."""
    folder = read(MODELS["cifar10-vit"])
    assert folder.manifest
    handler = load("cifar10-vit")
    for example in folder.golden:
        file, logits = base64.b64decode(example.inputs["image"]), example.outputs["logits"]
        (_, plain), (_, in_json) = ask(handler, file, {"inputs": example.inputs["image"]})
        assert plain == in_json
        assert len(plain) == 5
        assert plain[0]["label"] == folder.manifest.labels[logits.index(max(logits))]


@pytest.mark.parametrize("num_beams", [1, 4])
def test_translations_are_the_golden_ones(load: Load, num_beams: int) -> None:
    """Each text of a batch is translated, by greedy and by beam search."""
    folder, handler = read(MODELS["translation-en-de"]), load("translation-en-de")
    bodies = [{"inputs": each.inputs["text"], "parameters": {"num_beams": num_beams}} for each in folder.golden]
    texts = [answer[0]["translation_text"] for _, answer in ask(handler, *bodies)]
    alone = [ask(handler, body)[0][1][0]["translation_text"] for body in bodies]
    assert texts == alone
    assert all(texts)


@pytest.mark.parametrize(
    ("model", "body", "error"),
    [
        ("sentiment-small", {"inputs": ""}, "inputs is empty"),
        ("sentiment-small", {"inputs": ["good", " "]}, "inputs[1] is empty"),
        ("sentiment-small", {"inputs": "good", "top_k": 1}, "unknown field `top_k`"),
        ("sentiment-small", {"inputs": ["good"] * 513}, "513 inputs, the limit is 512"),
        ("sentiment-small", b'{"inputs": "go', "the body is not JSON"),
        ("cifar10-vit", b"GIF89a", "the body is not a JPEG, PNG or WebP file"),
        ("translation-en-de", {"inputs": "good", "stream": True}, "stream is not supported by TorchServe"),
        (
            "sentiment-small",
            {"inputs": "good", "parameters": {"explain": {}}},
            "explain is not supported by TorchServe",
        ),
        ("cifar10-vit", {"inputs": "", "parameters": {"explain": {}}}, "explain is not supported by TorchServe"),
        (
            "translation-en-de",
            {"inputs": "good", "parameters": {"explain": {}}},
            "explain is not supported by TorchServe",
        ),
        ("translation-en-de", {"inputs": "good", "parameters": {"num_beams": 5}}, "num_beams is 5, the limit is 4"),
        ("translation-en-de", {"inputs": "good", "parameters": {"tgt_lang": "fr"}}, "tgt_lang is 'fr'"),
    ],
)
def test_a_wrong_request_is_refused_and_leaves_the_others_alone(load: Load, model: str, body: Any, error: str) -> None:
    """Invalid requests do not affect valid ones in the same batch."""
    right = golden_images()["a tall PNG"] if model == "cifar10-vit" else {"inputs": "A wonderful film."}
    handler = load(model)
    before, (status, answer), after = ask(handler, right, body, right)
    assert status == 400
    assert error in answer["error"]
    assert before[0] == after[0] == 200
    key = "translation_text" if model == "translation-en-de" else "label"
    answers = [document[0] for _, document in (before, after, ask(handler, right)[0])]
    found = [(each[0] if isinstance(each, list) else each)[key] for each in answers]
    assert found == found[:1] * 3


def test_a_request_without_body_is_refused(load: Load) -> None:
    """TorchServe passes the fields of a form instead of a body."""
    context = Context("any", "", {}, 4, None, "0.12.0")
    context.request_processor = [RequestProcessor({})]
    (answer,) = load("sentiment-small").handle([{'{"inputs": "good"}': b""}], context)
    assert context.get_response_status(0)[0] == 400
    assert "content-type: application/json" in json.loads(answer)["error"]


def test_bodies_that_torchserve_has_decoded_are_read(load: Load) -> None:
    """Without TS_DECODE_INPUT_REQUEST=false, JSON comes as a dict and text as str; over gRPC the name is `data`."""
    handler = load("sentiment-small")
    for request in (
        {"body": {"inputs": "A wonderful film."}},
        {"body": '{"inputs": "A wonderful film."}'},
        {"data": bytearray(b'{"inputs": "A wonderful film."}')},
    ):
        context = Context("any", "", {}, 4, None, "0.12.0")
        context.request_processor = [RequestProcessor({})]
        (answer,) = handler.handle([request], context)
        assert json.loads(answer)[0][0]["label"] == "POSITIVE"


def test_a_damaged_model_is_not_loaded(unpacked: Callable[[str, Runtime | None], Path], tmp_path: Path) -> None:
    """Checksums are verified in the archive too."""
    import shutil

    shutil.copytree(unpacked("sentiment-small", None), tmp_path / "files")
    with (tmp_path / "files/model/tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(FolderError, match=r"tokenizer\.json"):
        Handler().initialize(context_of(tmp_path / "files", "sentiment-small"))
