"""The models of the repository, as a fresh clone serves them."""

import base64
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
import sacrebleu

from export.conversion.comparison.translation import MAX_SCORE_DIFFERENCE
from export.conversion.explanation_graph import replay_golden_rows
from export.conversion.golden_images import golden_images
from export.data.sets.translations import load_translation_set
from export.networks.translation import BOS_ID, EOS_ID
from export.onnx_graphs.translation import OnnxTranslator
from export.tasks.task import task_of
from export.training.translation import translate
from load_tests.material import OWN_PAIRS, load_images
from model_store.folder import read_explain_golden
from proto import heed_pb2, heed_pb2_grpc, inference_pb2, inference_pb2_grpc
from service.tasks.decoding.search import GOLDEN_SEARCHES
from service.tasks.translation import Translation
from tests.conftest import ROOT, Server

EVERYDAY = [line.split("\t") for line in (ROOT / "tests/data/everyday_sentiment.tsv").read_text().splitlines()]


def test_every_committed_model_is_ready(committed_server: Server) -> None:
    """Each passes its checksums, golden replay and tokenizer check."""
    answer = httpx.get(f"{committed_server.http}/readyz")
    assert (answer.status_code, answer.json()["not_served"]) == (200, {})


@pytest.mark.parametrize("folder", sorted((ROOT / "model_store").glob("*/[0-9]*")), ids=lambda path: path.parent.name)
def test_every_committed_model_has_a_valid_explanation_graph(folder: Path) -> None:
    """It uses the weights of the served graphs, and its golden rows equal PyTorch's."""
    task = task_of(json.loads((folder / "manifest.json").read_text())["task"])
    worst = replay_golden_rows(folder, task)
    assert {"attribution"} < worst.keys()
    golden = read_explain_golden(folder)
    assert len({row.alpha for row in golden.rows}) > 1
    assert golden.measured["completeness_gap_of_128_steps"] <= 0.05
    assert (folder / "explain.onnx").stat().st_size < 100_000


def test_int8_models_are_listed_as_not_independent(committed_server: Server) -> None:
    """Index and metadata give the largest change of the manifest; float32 models have none."""
    with httpx.Client(base_url=committed_server.http) as http:
        listed = {model["name"]: model["batching"] for model in http.get("/v2/models").json()["models"]}
        described = {name: http.get(f"/v2/models/{name}").json()["properties"]["batching"] for name in listed}
    assert described == listed
    for name, batching in listed.items():
        manifest = json.loads((ROOT / "model_store" / name / "1/manifest.json").read_text())
        if manifest["precision"] == "int8":
            worst = manifest["batch_sensitivity"]["worst"]
            assert batching == f"not independent, worst change {worst:.3f}"
        else:
            assert "independent" not in batching


def over_v2(http: httpx.Client, model: str, tensor: dict[str, object]) -> str:
    """Return the first element of the first output over REST."""
    body = {"inputs": [{"shape": [1], "datatype": "BYTES"} | tensor]}
    outputs = http.post(f"/v2/models/{model}/infer", json=body).raise_for_status().json()["outputs"]
    return str(outputs[0]["data"][0])


def over_v2_grpc(channel: grpc.Channel, model: str, name: str, content: bytes) -> str:
    """Return the first element of the first output over gRPC."""
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name=name, datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(content)
    request = inference_pb2.ModelInferRequest(model_name=model, inputs=[tensor])
    answer = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    return str(answer.outputs[0].contents.bytes_contents[0].decode())


def test_every_interface_gives_the_same_answer(committed_server: Server) -> None:
    """The interfaces are Open Inference Protocol over REST and gRPC, typed call, stream, and task API."""
    text = "Two children are playing in the snow."
    with (
        httpx.Client(base_url=committed_server.http, timeout=60) as http,
        grpc.insecure_channel(committed_server.grpc) as channel,
    ):
        typed = heed_pb2_grpc.HeedStub(channel)
        for model in ("sentiment", "sentiment-small"):
            answers = {
                http.post(f"/models/{model}", json={"inputs": text}).json()[0][0]["label"],
                over_v2(http, model, {"name": "text", "data": [text]}),
                over_v2_grpc(channel, model, "text", text.encode()),
                typed.ClassifyText(heed_pb2.ClassifyTextRequest(model=model, text=text)).label,
            }
            assert len(answers) == 1, (model, answers)
        for model in ("translation-en-de", "translation-en-de-int8"):
            request = heed_pb2.TranslateRequest(model=model, text=text)
            streamed = "".join(chunk.text for chunk in typed.TranslateStream(request))
            with http.stream("POST", f"/models/{model}", json={"inputs": text, "stream": True}) as events:
                pieces = [json.loads(line[6:]) for line in events.iter_lines() if line]
            answers = {
                http.post(f"/models/{model}", json={"inputs": text}).json()[0]["translation_text"],
                "".join(piece.get("text", "") for piece in pieces),
                pieces[-1]["translation_text"],
                over_v2(http, model, {"name": "text", "data": [text]}),
                over_v2_grpc(channel, model, "text", text.encode()),
                typed.Translate(request).translation,
                streamed,
            }
            assert len(answers) == 1, (model, answers)
            assert "Kinder" in answers.pop()
        file = next(iter(golden_images().values()))
        answers = {
            http.post("/models/cifar10-vit", content=file).json()[0]["label"],
            over_v2(http, "cifar10-vit", {"name": "image", "data": [base64.b64encode(file).decode()]}),
            over_v2_grpc(channel, "cifar10-vit", "image", file),
            typed.ClassifyImage(heed_pb2.ClassifyImageRequest(model="cifar10-vit", image=file)).label,
        }
        assert len(answers) == 1, answers


@pytest.mark.parametrize(("model", "floor"), [("sentiment", 0.87), ("sentiment-small", 0.82)])
def test_everyday_sentences_are_mostly_understood(committed_server: Server, model: str, floor: float) -> None:
    """The training texts are lower-cased reviews; the model cards state the accuracy on everyday spelling."""
    texts = [text for _, text in EVERYDAY]
    answers = httpx.post(f"{committed_server.http}/models/{model}", json={"inputs": texts}, timeout=60).json()
    right = sum(answer[0]["label"] == label for answer, (label, _) in zip(answers, EVERYDAY, strict=True))
    assert right / len(EVERYDAY) > floor


@pytest.mark.parametrize("model", ["translation-en-de", "translation-en-de-int8"])
def test_everyday_sentences_are_translated(committed_server: Server, model: str) -> None:
    """Translations of our own sentences, which are not training data, come close to the references."""
    pairs = [line.split("\t") for line in OWN_PAIRS.read_text().splitlines()]
    body = {"inputs": [english for english, _ in pairs], "parameters": {"num_beams": 4}}
    answers = httpx.post(f"{committed_server.http}/models/{model}", json=body, timeout=60).json()
    translations = [answer["translation_text"] for answer in answers]
    assert sacrebleu.corpus_chrf(translations, [[german for _, german in pairs]]).score > 80


@pytest.mark.parametrize("search", list(GOLDEN_SEARCHES))
def test_batched_translations_equal_those_of_the_conversion(committed_server: Server, search: str) -> None:
    """Sentences in a running batch get the text that was proved equal to PyTorch's.

    Rounding depends on the batch, so two translations that are equally likely to four digits may change places.
    """
    if not os.environ.get("HEED_DATASETS"):
        pytest.skip("HEED_DATASETS is not set: Multi30k is not at hand")
    folder, request = ROOT / "model_store/translation-en-de/1", GOLDEN_SEARCHES[search]
    limit = json.loads((folder / "manifest.json").read_text())["limits"]["max_tokens"]
    task = Translation(
        (folder / "tokenizer.json").read_text(),
        max_tokens=limit,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        source_language="en",
        target_language="de",
    )
    texts = load_translation_set("multi30k").test["Multi30k"].source[:240]
    sentences = [task.preprocess(text, truncate=False, field="text", request=request) for text in texts]
    ids, options = [sentence.ids for sentence in sentences], [sentence.options for sentence in sentences]
    expected = translate(OnnxTranslator(folder), ids, options)

    def ask(first: int) -> list[tuple[str, float]]:
        tensor = {"name": "text", "shape": [40], "datatype": "BYTES", "data": texts[first : first + 40]}
        body = {"inputs": [tensor], "parameters": {"num_beams": request.num_beams or 1}}
        answer = httpx.post(f"{committed_server.http}/v2/models/translation-en-de/infer", json=body, timeout=60)
        outputs = {output["name"]: output["data"] for output in answer.raise_for_status().json()["outputs"]}
        return list(zip(outputs["translation"], outputs["score"], strict=True))

    with ThreadPoolExecutor(6) as pool:
        served = [entry for part in pool.map(ask, range(0, len(texts), 40)) for entry in part]
    changed = 0
    for (text, score), hypothesis in zip(served, expected, strict=True):
        changed += text != task.text_of(hypothesis.ids)
        assert score == pytest.approx(hypothesis.score, abs=MAX_SCORE_DIFFERENCE)
    assert changed <= 2


def test_images_are_recognised(committed_server: Server) -> None:
    """The first images of the test split are sent as files."""
    if not os.environ.get("HEED_DATASETS"):
        pytest.skip("HEED_DATASETS is not set: CIFAR-10 is not at hand")
    images = load_images(200)
    with httpx.Client(base_url=committed_server.http) as http:
        headers = {"content-type": "image/png"}
        answers = [http.post("/models/cifar10-vit", content=file, headers=headers).json() for file in images.files]
    right = sum(answer[0]["label"] == label for answer, label in zip(answers, images.labels, strict=True))
    assert right / len(images.labels) > 0.84


def test_the_everyday_sentences_are_balanced_and_unique() -> None:
    """Half of them are positive."""
    labels = [label for label, _ in EVERYDAY]
    assert labels.count("POSITIVE") == labels.count("NEGATIVE") >= 100
    assert len({text for _, text in EVERYDAY}) == len(EVERYDAY)
