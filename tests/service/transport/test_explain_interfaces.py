"""Explanations of the committed models: equal over every interface, and without delaying predictions."""

import base64
import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import onnxruntime
import pytest
from PIL import Image
from tokenizers import Tokenizer

from export.conversion.golden_images import golden_images
from proto import heed_pb2, heed_pb2_grpc, inference_pb2, inference_pb2_grpc
from tests.conftest import ROOT, START_S, Server, make_store, running_server

TEXT, SENTENCE = "I don't like the plot, but the music is wonderful.", "Two children are playing in the snow."
FILE = next(iter(golden_images().values()))
PATIENCE_S = 30.0
# So many evaluations that no explanation ends before its test has seen it.
LONG = {"method": "shap", "n_samples": 4096}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Run a server on the repository's own store."""
    with running_server(ROOT / "model_store") as running:
        yield running


@pytest.fixture(scope="module")
def typed(server: Server) -> Iterator[heed_pb2_grpc.HeedStub]:
    """Open the typed calls."""
    with grpc.insecure_channel(server.grpc) as channel:
        yield heed_pb2_grpc.HeedStub(channel)


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    """Open an HTTP client."""
    with httpx.Client(base_url=server.http, timeout=PATIENCE_S) as client:
        yield client


def input_json(element: str | bytes, **parameters: Any) -> dict[str, Any]:
    """Make a request with one text, or one file as base64."""
    name, data = ("text", element) if isinstance(element, str) else ("image", base64.b64encode(element).decode())
    return {
        "inputs": [{"name": name, "shape": [1], "datatype": "BYTES", "data": [data]}],
        "parameters": parameters,
    }


def over_rest(http: httpx.Client, model: str, element: str | bytes, **parameters: Any) -> Any:
    """Return the document of `/v2/.../explain`."""
    response = http.post(f"/v2/models/{model}/explain", json=input_json(element, **parameters))
    assert response.status_code == 200, response.text
    return response.json()


def over_grpc(typed: heed_pb2_grpc.HeedStub, model: str, element: str | bytes, **parameters: Any) -> Any:
    """Return the typed call's answer in the form of REST."""
    given: dict[str, Any] = {"text" if isinstance(element, str) else "image": element}
    answer = typed.Explain(heed_pb2.ExplainRequest(model=model, **given, **parameters))
    document: dict[str, Any] = {"method": answer.method, "target": answer.target, "score": answer.score}
    if answer.HasField("patches"):
        grid = np.array(answer.patches.weights).reshape(answer.patches.rows, answer.patches.columns)
        document["patches"] = {"rows": len(grid), "columns": len(grid[0]), "weights": grid.tolist()}
        document["overlay"] = base64.b64encode(answer.overlay).decode()
    else:
        names = ("text", "start", "end", "weight")
        document["features"] = [{name: getattr(each, name) for name in names} for each in answer.features]
    if answer.target_tokens:
        document["target_tokens"] = list(answer.target_tokens)
        if answer.features[0].influence:
            document["influence"] = [list(each.influence) for each in answer.features]
    if answer.tokens:
        names = ("text", "start", "end", "weight")
        document["tokens"] = [
            {name: getattr(each, name) for name in names}
            | {"feature": each.feature if each.HasField("feature") else None}
            for each in answer.tokens
        ]
    if answer.HasField("attention"):
        view = answer.attention
        document["attention"] = {name: getattr(view, name) for name in ("part", "layers", "heads")}
        document["attention"] |= {
            name: getattr(view, name) if view.HasField(name) else None for name in ("layer", "head")
        }
        rows = np.array(view.weights).reshape(view.rows, -1).tolist() if view.rows else None
        document["attention"]["weights"] = rows
    fidelity = answer.fidelity
    names = ("deletion_area", "insertion_area", "evaluations", "seed", "seconds")
    document["fidelity"] = {name: getattr(fidelity, name) for name in names}
    gap = fidelity.completeness_gap if fidelity.HasField("completeness_gap") else None
    document["fidelity"]["completeness_gap"] = gap
    assert answer.receipt.model_version == "1"
    return document


def over_task_api(http: httpx.Client, model: str, element: str | bytes, **parameters: Any) -> tuple[Any, Any]:
    """Return the prediction and the explanation."""
    inputs = element if isinstance(element, str) else base64.b64encode(element).decode()
    response = http.post(f"/models/{model}", json={"inputs": inputs, "parameters": {"explain": parameters}})
    assert response.status_code == 200, response.text
    assert int(response.headers["x-heed-compute-us"]) > 0
    document = response.json()
    assert document.keys() == {"answer", "explanation"}
    return document["answer"], document["explanation"]


def weights_of(explanation: Any) -> list[float]:
    """Return the weights of the words, or of the patches row by row."""
    if "patches" in explanation:
        return [weight for row in explanation["patches"]["weights"] for weight in row]
    return [feature["weight"] for feature in explanation["features"]]


def metric(http: httpx.Client, pattern: str) -> float:
    """Return the value of one series."""
    found = re.search(rf"^{pattern} (\S+)$", http.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def wait_until_explaining(http: httpx.Client, model: str) -> None:
    """Wait until rows of an explanation are queued or computed."""
    gives_up_s = time.monotonic() + PATIENCE_S
    waiting = rf'heed_low_priority_queue_rows\{{model="{model}",version="1"\}}'
    while not metric(http, waiting):
        assert time.monotonic() < gives_up_s


SAMPLING, BY_GRAPH = ("occlusion", "lime", "shap"), ("attention", "gradients")
MODELS: list[tuple[str, str | bytes, float]] = [
    ("sentiment-small", TEXT, 1e-4),
    # In int8 the rows of a call share their scales, so answers depend on the batch.
    ("sentiment", TEXT, 0.1),
    ("cifar10-vit", FILE, 1e-3),
    ("translation-en-de", SENTENCE, 1e-2),
    ("translation-en-de-int8", SENTENCE, 0.1),
]
ASKED: dict[str, dict[str, Any]] = {
    **{method: {"n_samples": 192, "seed": 3} for method in SAMPLING},
    "attention": {"seed": 3},
    "gradients": {"n_samples": 64, "seed": 3},
}


@pytest.mark.parametrize(
    ("method", "model", "element", "tolerance"),
    [
        (method, *model)
        for method in (*SAMPLING, *BY_GRAPH)
        for model in (MODELS if method in BY_GRAPH else MODELS[:-1])
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_every_interface_gives_the_same_explanation(
    http: httpx.Client,
    typed: heed_pb2_grpc.HeedStub,
    method: str,
    model: str,
    element: str | bytes,
    tolerance: float,
) -> None:
    """Parts, weights, score and fidelity are equal; the task API adds the prediction."""
    asked = ASKED[method] | {"method": method}
    rest, typed_answer = over_rest(http, model, element, **asked), over_grpc(typed, model, element, **asked)
    answer, explanation = over_task_api(http, model, element, **asked)
    inputs = element if isinstance(element, str) else base64.b64encode(element).decode()
    usual = http.post(f"/models/{model}", json={"inputs": inputs}).json()
    if model.startswith("translation"):
        assert answer == usual
        assert rest["target"] == answer[0]["translation_text"]
    else:
        best = (answer if isinstance(element, bytes) else answer[0])[0]
        assert best["label"] == (usual if isinstance(element, bytes) else usual[0])[0]["label"] == rest["target"]
        assert rest["score"] == pytest.approx(best["score"], abs=tolerance)
    assert (rest["model_name"], rest["model_version"]) == (model, "1")
    assert rest["id"]
    assert rest["receipt"].keys() >= {"queue_us", "compute_us", "batch_size", "model_version"}
    assert rest["fidelity"]["seed"] == 3
    assert 2 <= rest["fidelity"]["evaluations"] <= 2 + 192 + 2 * 32
    for other in (typed_answer, explanation):
        for name in ("method", "target", "target_tokens"):
            assert other.get(name) == rest.get(name)
        assert weights_of(other) == pytest.approx(weights_of(rest), abs=tolerance)
        assert other["score"] == pytest.approx(rest["score"], abs=tolerance)
        for name in ("deletion_area", "insertion_area"):
            assert other["fidelity"][name] == pytest.approx(rest["fidelity"][name], abs=max(tolerance, 0.02))
        assert (other["fidelity"]["completeness_gap"] is None) is (method not in ("shap", "gradients"))
        if "features" in rest:
            places = [[(each["text"], each["start"], each["end"]) for each in doc["features"]] for doc in (rest, other)]
            assert places[0] == places[1]
        if method in BY_GRAPH:
            # float32 with one row at a time: the weights do not depend on the batch.
            assert weights_of(other) == pytest.approx(weights_of(rest), abs=1e-6)
            for name in ("tokens", "attention", "influence"):
                assert other.get(name) == rest.get(name)
    if method == "shap":
        assert rest["fidelity"]["completeness_gap"] < 1e-9


def test_decisive_words_have_the_largest_weights(http: httpx.Client) -> None:
    """This holds for every method; for the other of two classes the sign is reversed."""
    for method in ("occlusion", "lime", "shap"):
        explanation = over_rest(http, "sentiment-small", TEXT, method=method)
        assert explanation["target"] == "POSITIVE"
        features = explanation["features"]
        assert [TEXT[each["start"] : each["end"]] for each in features] == [each["text"] for each in features]
        assert max(features, key=lambda each: float(each["weight"]))["text"] == "wonderful"
        other = over_rest(http, "sentiment-small", TEXT, method=method, target="NEGATIVE")
        assert other["score"] == pytest.approx(1 - explanation["score"], abs=1e-5)
        assert weights_of(other) == pytest.approx([-weight for weight in weights_of(explanation)], abs=1e-4)
        fidelity = explanation["fidelity"]
        assert fidelity["insertion_area"] > fidelity["deletion_area"]


def test_each_source_word_weighs_most_for_its_target_token(http: httpx.Client, typed: heed_pb2_grpc.HeedStub) -> None:
    """Each weight explains a token's log probability; a word's weight is the sum over the tokens."""
    explanation = over_rest(http, "translation-en-de", SENTENCE)
    translated = typed.Translate(heed_pb2.TranslateRequest(model="translation-en-de", text=SENTENCE))
    tokens, influence_MK = explanation["target_tokens"], np.array(explanation["influence"])
    assert explanation["target"] == "".join(tokens[:-1]) == translated.translation
    assert tokens[-1] == "[EOS]"
    assert len(tokens) == translated.num_tokens + 1
    assert explanation["score"] == pytest.approx(translated.score * len(tokens), abs=1e-3)
    np.testing.assert_allclose(influence_MK.sum(axis=1), weights_of(explanation), atol=1e-9)
    words = [each["text"] for each in explanation["features"]]
    strongest = {words[row]: tokens[influence_MK[row].argmax()].strip() for row in range(len(words))}
    known = {"Two": "Zwei", "children": "Kinder", "playing": "spielen", "snow": "Schnee"}
    assert {word: strongest[word] for word in known} == known
    beams = over_rest(http, "translation-en-de", SENTENCE, num_beams=4, max_new_tokens=3)
    assert len(beams["target_tokens"]) == 3
    assert "[EOS]" not in beams["target_tokens"]


def test_integrated_gradients_add_up_to_the_logit(http: httpx.Client) -> None:
    """The weights of tokens add up to the change of each class' logit, and those of words to their tokens'."""
    explanations = {
        target: over_rest(http, "sentiment-small", TEXT, method="gradients", n_samples=128, target=target)
        for target in ("POSITIVE", "NEGATIVE")
    }
    for explanation in explanations.values():
        tokens, features = explanation["tokens"], explanation["features"]
        assert [tokens[0]["text"], tokens[-1]["text"]] == ["[CLS]", "[SEP]"]
        for number, feature in enumerate(features):
            its_own = [token for token in tokens if token["feature"] == number]
            assert "".join(TEXT[token["start"] : token["end"]] for token in its_own) == feature["text"]
            assert sum(token["weight"] for token in its_own) == pytest.approx(feature["weight"], abs=1e-9)
        assert explanation["fidelity"]["completeness_gap"] < 1e-3
        assert explanation["fidelity"]["insertion_area"] > explanation["fidelity"]["deletion_area"] + 0.3
    session = onnxruntime.InferenceSession(str(ROOT / "model_store/sentiment-small/1/explain.onnx"))
    tokenizer = Tokenizer.from_file(str(ROOT / "model_store/sentiment-small/1/tokenizer.json"))
    ids = np.array([tokenizer.encode(TEXT).ids] * 2)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "target": np.zeros(2, dtype=np.int64)}
    (logits,) = session.run(["logits"], feeds | {"alpha": np.array([1.0, 0.0], dtype=np.float32)})
    for number, label in enumerate(("NEGATIVE", "POSITIVE")):
        shared = sum(token["weight"] for token in explanations[label]["tokens"])
        assert shared == pytest.approx(logits[0][number] - logits[1][number], abs=1e-3)


def test_attention_is_that_of_the_requested_layer_and_head(http: httpx.Client) -> None:
    """It is compared with ONNX Runtime; a token's weight is its mean attention, and all weights sum to one."""
    session = onnxruntime.InferenceSession(str(ROOT / "model_store/sentiment/1/explain.onnx"))
    tokenizer = Tokenizer.from_file(str(ROOT / "model_store/sentiment/1/tokenizer.json"))
    ids = np.array([tokenizer.encode(TEXT).ids])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "target": np.zeros(1, dtype=np.int64)}
    (attention_BLHTT,) = session.run(["attention"], feeds | {"alpha": np.ones(1, dtype=np.float32)})
    for chosen in ({}, {"layer": 5}, {"layer": 2, "head": 11}):
        explanation = over_rest(http, "sentiment", TEXT, method="attention", **chosen)
        view = explanation["attention"]
        assert (view["part"], view["layers"], view["heads"]) == ("encoder", 6, 12)
        assert {name: view[name] for name in ("layer", "head") if view[name] is not None} == chosen
        if "head" in chosen:
            np.testing.assert_allclose(view["weights"], attention_BLHTT[0, 2, 11], atol=1e-5)
        elif "layer" in chosen:
            np.testing.assert_allclose(view["weights"], attention_BLHTT[0, 5].mean(axis=0), atol=1e-5)
        tokens = [token["weight"] for token in explanation["tokens"]]
        np.testing.assert_allclose(tokens, np.mean(view["weights"], axis=0), atol=1e-5)
        assert sum(tokens) == pytest.approx(1, abs=1e-5)


def test_the_alignment_of_a_translation_is_its_cross_attention(http: httpx.Client) -> None:
    """The end of the sentence is left out; the attention of a word is the sum of its tokens."""
    for model in ("translation-en-de", "translation-en-de-int8"):
        explanation = over_rest(http, model, SENTENCE, method="attention")
        tokens, influence_MK = explanation["target_tokens"], np.array(explanation["influence"])
        view = explanation["attention"]
        assert (view["part"], view["layers"], view["heads"]) == ("cross", 2, 8)
        np.testing.assert_allclose(influence_MK, np.array(view["weights"])[:, :-1].T, atol=1e-5)
        np.testing.assert_allclose(influence_MK.sum(axis=1), weights_of(explanation), atol=1e-9)
        words = [each["text"] for each in explanation["features"]]
        looked_at = {token.strip(): words[influence_MK[:, column].argmax()] for column, token in enumerate(tokens)}
        known = {"Zwei": "Two", "Kinder": "children", "spielen": "playing", "im": "in", "Schnee": "snow"}
        assert {token: looked_at[token] for token in known} == known
    encoder = over_rest(http, "translation-en-de", SENTENCE, method="attention", part="encoder", layer=3, head=7)
    assert "influence" not in encoder
    np.testing.assert_allclose(np.sum(encoder["attention"]["weights"], axis=1), 1, atol=1e-5)
    assert len(encoder["attention"]["weights"]) == len(encoder["tokens"]) == len(words) + 1


def test_a_long_text_has_no_attention_matrix(http: httpx.Client) -> None:
    """It would be too large; the weights of words and tokens are there."""
    explanation = over_rest(http, "sentiment", "so " * 300 + "fine", method="attention", layer=0)
    assert explanation["attention"]["weights"] is None
    assert len(explanation["tokens"]) == 303
    assert sum(token["weight"] for token in explanation["tokens"]) == pytest.approx(1, abs=1e-5)


def test_the_overlay_is_a_png_of_the_image(http: httpx.Client) -> None:
    """The file is sent in JSON, in the binary part, or as the whole body."""
    explanation = over_rest(http, "cifar10-vit", FILE)
    assert (explanation["patches"]["rows"], explanation["patches"]["columns"]) == (8, 8)
    drawn = Image.open(BytesIO(base64.b64decode(explanation["overlay"])))
    assert (drawn.format, max(drawn.size)) == ("PNG", 448)
    bare = http.post(
        "/v2/models/cifar10-vit/explain", content=FILE, headers={"inference-header-content-length": "0"}
    ).json()
    blob = len(FILE).to_bytes(4, "little") + FILE
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    binary = http.post("/v2/models/cifar10-vit/versions/1/explain", content=head + blob, headers=headers).json()
    for other in (bare, binary):
        assert weights_of(other) == pytest.approx(weights_of(explanation), abs=1e-3)


def test_a_truncated_text_has_the_words_that_were_read(http: httpx.Client) -> None:
    """Without the parameter a long text is refused as in inference."""
    long = "so " * 600 + "fine"
    cut = over_rest(http, "sentiment-small", long, truncate=True, method="lime", n_samples=8)
    assert len(cut["features"]) == 254
    assert cut["receipt"]["truncated"] is True
    response = http.post("/v2/models/sentiment-small/explain", json=input_json(long))
    assert response.status_code == 400
    assert "has 603 tokens, the model takes at most 256" in response.json()["error"]


ALL = "occlusion, lime, shap, attention, gradients"
WRONG: list[tuple[str, str | bytes, dict[str, Any], str]] = [
    ("sentiment", TEXT, {"method": "magic"}, f"method 'magic' is not known; model 'sentiment' has {ALL}"),
    ("sentiment", TEXT, {"method": "attention", "layer": 6}, "layer must lie between 0 and 5, not 6"),
    ("cifar10-vit", FILE, {"method": "attention", "layer": 0, "head": 6}, "head must lie between 0 and 5, not 6"),
    ("translation-en-de", TEXT, {"method": "attention", "layer": 2}, "layer must lie between 0 and 1, not 2"),
    (
        "translation-en-de",
        TEXT,
        {"method": "attention", "part": "encoder", "layer": 4},
        "layer must lie between 0 and 3, not 4",
    ),
    ("sentiment", TEXT, {"method": "attention", "head": 1}, "head needs a layer, which is missing"),
    (
        "sentiment",
        TEXT,
        {"method": "attention", "part": "cross"},
        "part 'cross' is not known; the model has encoder",
    ),
    ("sentiment", TEXT, {"layer": 1}, "layer applies to method 'attention', not to 'occlusion'"),
    ("sentiment", TEXT, {"method": "gradients", "head": 1}, "head applies to method 'attention', not to 'gradients'"),
    (
        "sentiment",
        TEXT,
        {"method": "attention", "n_samples": 64},
        "n_samples does not apply to method 'attention'",
    ),
    (
        "cifar10-vit",
        FILE,
        {"method": "gradients", "n_samples": 32},
        "n_samples is the number of steps of gradients and must lie between 64 and 128, not 32",
    ),
    (
        "sentiment",
        TEXT,
        {"target": "SAD"},
        "target 'SAD' is not a class of model 'sentiment'; it has NEGATIVE, POSITIVE",
    ),
    (
        "translation-en-de",
        TEXT,
        {"target": "Hund"},
        "target is the class of a classifier; an explanation of a translation takes none",
    ),
    ("sentiment", TEXT, {"n_samples": 0}, "n_samples must lie between 1 and 4096, not 0"),
    ("cifar10-vit", FILE, {"n_samples": 5000}, "n_samples must lie between 1 and 4096, not 5000"),
    ("sentiment", TEXT, {"n_samples": 3}, "n_samples is 3, occlusion of 12 features takes at least 12"),
    (
        "cifar10-vit",
        FILE,
        {"method": "shap", "n_samples": 100},
        "n_samples is 100, shap of 64 features takes at least 128",
    ),
    ("sentiment", TEXT, {"seed": 2**63}, f"seed must lie between 0 and {2**63 - 1}, not {2**63}"),
    ("nothing", TEXT, {}, "Request for unknown model: 'nothing' is not in the store"),
]


@pytest.mark.parametrize(("model", "element", "parameters", "text"), WRONG, ids=[text for *_, text in WRONG])
def test_every_interface_gives_the_same_error(
    http: httpx.Client,
    typed: heed_pb2_grpc.HeedStub,
    model: str,
    element: str | bytes,
    parameters: dict[str, Any],
    text: str,
) -> None:
    """The error names the parameter and its limit."""
    status, code = (404, grpc.StatusCode.NOT_FOUND) if model == "nothing" else (400, grpc.StatusCode.INVALID_ARGUMENT)
    inputs = element if isinstance(element, str) else base64.b64encode(element).decode()
    for path, body in (
        (f"/v2/models/{model}/explain", input_json(element, **parameters)),
        (f"/models/{model}", {"inputs": inputs, "parameters": {"explain": parameters}}),
    ):
        response = http.post(path, json=body)
        assert (response.status_code, response.json()) == (status, {"error": text})
    with pytest.raises(grpc.RpcError) as refused:
        over_grpc(typed, model, element, **parameters)
    assert (refused.value.code(), refused.value.details()) == (code, text)


def test_invalid_requests_are_refused(http: httpx.Client, typed: heed_pb2_grpc.HeedStub) -> None:
    """Examples are several inputs, none, the wrong kind, parameters of the wrong type, a stream."""
    two = input_json(TEXT)
    two["inputs"][0] |= {"shape": [2], "data": [TEXT, TEXT]}
    explain = {"explain": {"method": "lime"}}
    for path, body, text in (
        ("/v2/models/sentiment/explain", two, "an explanation takes one input, the request has 2"),
        ("/v2/models/sentiment/explain", {"inputs": []}, "input text is missing; the model has text"),
        ("/v2/models/sentiment/explain", input_json(FILE), "unknown input image; the model has text"),
        ("/v2/models/sentiment/explain", input_json(" "), "text[0] is empty"),
        (
            "/v2/models/sentiment/explain",
            input_json(TEXT, n_samples=True),
            "parameter 'n_samples' must be an integer, not True",
        ),
        ("/v2/models/sentiment/explain", input_json(TEXT, method=1), "parameter 'method' must be a text, not 1"),
        ("/v2/models/cifar10-vit/explain", input_json(b"GIF89a"), "image[0] is not a JPEG, PNG or WebP file"),
        ("/models/sentiment", {"inputs": [TEXT, TEXT], "parameters": explain}, "the request has 2"),
        ("/models/sentiment", {"inputs": "", "parameters": explain}, "inputs is empty"),
        ("/models/sentiment", {"inputs": "x", "parameters": {"explain": {"samples": 3}}}, "unknown field `samples`"),
        (
            "/models/translation-en-de",
            {"inputs": "red", "parameters": explain, "stream": True},
            "explain is not offered where stream is true",
        ),
    ):
        response = http.post(path, json=body)
        assert response.status_code == 400, (body, response.text)
        assert text in response.json()["error"]
    for request, details in (
        (heed_pb2.ExplainRequest(model="sentiment"), "the request has no input: text or image"),
        (heed_pb2.ExplainRequest(model="sentiment", image=FILE), "unknown input image; the model has text, text_pair"),
        (heed_pb2.ExplainRequest(model="cifar10-vit", text="red"), "unknown input text; the model has image"),
        (heed_pb2.ExplainRequest(model="sentiment", text=" "), "text is empty"),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            typed.Explain(request)
        assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, details)


def test_the_metadata_lists_explanations(server: Server, http: httpx.Client) -> None:
    """The server lists methods as extensions, and each model its own methods over REST."""
    extensions = {"explain", *(f"explain:{method}" for method in (*SAMPLING, *BY_GRAPH))}
    assert extensions <= set(http.get("/v2").json()["extensions"])
    properties = http.get("/v2/models/sentiment").json()["properties"]
    assert properties["explain"] == ",".join((*SAMPLING, *BY_GRAPH))
    with grpc.insecure_channel(server.grpc) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert extensions <= set(stub.ServerMetadata(inference_pb2.ServerMetadataRequest()).extensions)
        # gRPC does not have it, because MLServer's client could not read the message.
        assert not stub.ModelMetadata(inference_pb2.ModelMetadataRequest(name="sentiment")).properties


def test_explanations_have_request_id_and_metrics(http: httpx.Client, typed: heed_pb2_grpc.HeedStub) -> None:
    """A request counts once by outcome and protocol; its evaluations are counted apart from predictions."""
    labels = 'model="sentiment-small",'

    def counts() -> list[float]:
        return [
            metric(http, rf'heed_requests_total\{{{labels}outcome="ok",protocol="http",version="1"\}}'),
            metric(http, rf'heed_requests_total\{{{labels}outcome="ok",protocol="grpc",version="1"\}}'),
            metric(http, rf'heed_requests_total\{{{labels}outcome="invalid",protocol="grpc",version="1"\}}'),
            metric(http, rf'heed_explain_seconds_count\{{method="lime",{labels}version="1"\}}'),
            metric(http, rf'heed_explain_evaluations_total\{{method="lime",{labels}version="1"\}}'),
            metric(http, rf'heed_request_seconds_count\{{{labels}protocol="http",version="1"\}}'),
        ]

    before = counts()
    response = http.post(
        "/v2/models/sentiment-small/explain",
        json=input_json(TEXT, method="lime") | {"id": "mine"},
        headers={"x-request-id": "abc"},
    )
    assert (response.headers["x-request-id"], response.json()["id"]) == ("abc", "mine")
    over_grpc(typed, "sentiment-small", TEXT, method="lime")
    with contextlib.suppress(grpc.RpcError):
        typed.Explain(heed_pb2.ExplainRequest(model="sentiment-small"))
    after = [now - then for now, then in zip(counts(), before, strict=True)]
    evaluations = response.json()["fidelity"]["evaluations"]
    assert after == [1, 1, 1, 2, 2 * evaluations, 0]


@contextlib.contextmanager
def hanging_up(url: str, path: str, body: bytes) -> Iterator[socket.socket]:
    """Send a request and close the connection without reading the answer."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        yield connection


LONG_ONES = [("cifar10-vit", FILE), ("translation-en-de", SENTENCE * 3)]


@pytest.mark.parametrize(("model", "element"), LONG_ONES, ids=["cifar10-vit", "translation-en-de"])
def test_a_prediction_during_an_explanation_is_answered_first(
    http: httpx.Client, server: Server, model: str, element: str | bytes
) -> None:
    """Ten predictions of the same model are answered before an explanation that came first."""
    body = json.dumps(input_json(element, **LONG)).encode()
    inputs = SENTENCE if isinstance(element, str) else base64.b64encode(element).decode()
    with hanging_up(server.http, f"/v2/models/{model}/explain", body) as connection:
        wait_until_explaining(http, model)
        for _ in range(10):
            assert http.post(f"/models/{model}", json={"inputs": inputs}).status_code == 200
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)


@pytest.mark.parametrize(("model", "element"), LONG_ONES, ids=["cifar10-vit", "translation-en-de"])
def test_cancelling_ends_an_explanation(
    http: httpx.Client, server: Server, typed: heed_pb2_grpc.HeedStub, model: str, element: str | bytes
) -> None:
    """After a cancelled gRPC call or a closed connection nothing of it is queued or computed."""
    series = [
        rf'{name}\{{model="{model}",version="1"\}}' for name in ("heed_low_priority_queue_rows", "heed_in_flight_rows")
    ]
    for protocol in ("grpc", "http"):
        ended = rf'heed_requests_total\{{model="{model}",outcome="cancelled",protocol="{protocol}",version="1"\}}'
        before = metric(http, ended)
        if protocol == "grpc":
            given: dict[str, Any] = {"text" if isinstance(element, str) else "image": element}
            call = typed.Explain.future(heed_pb2.ExplainRequest(model=model, **given, **LONG))
            wait_until_explaining(http, model)
            call.cancel()
        else:
            body = json.dumps(input_json(element, **LONG)).encode()
            with hanging_up(server.http, f"/v2/models/{model}/explain", body):
                wait_until_explaining(http, model)
        gives_up_s = time.monotonic() + PATIENCE_S
        while metric(http, ended) != before + 1 or any(metric(http, each) for each in series):
            assert time.monotonic() < gives_up_s


def test_a_deadline_ends_an_explanation(http: httpx.Client, typed: heed_pb2_grpc.HeedStub) -> None:
    """The deadline is HTTP's header, the parameter, or gRPC's own."""
    path, body = "/v2/models/cifar10-vit/explain", input_json(FILE, **LONG)
    assert http.post(path, json=body, headers={"x-request-timeout-ms": "200"}).status_code == 504
    assert http.post(path, json=input_json(FILE, **LONG, timeout=200_000)).status_code == 504
    with pytest.raises(grpc.RpcError) as expired:
        typed.Explain(heed_pb2.ExplainRequest(model="cifar10-vit", image=FILE, **LONG), timeout=0.2)
    assert expired.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_more_explanations_than_may_wait_are_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    """They are refused at once with a time to retry, while predictions are answered."""
    store = make_store(tmp_path_factory.mktemp("explain") / "models")
    (store / "cifar10-vit").symlink_to(ROOT / "model_store/cifar10-vit")
    with (
        running_server(store, "--max-queue", "4", "--max-request-rows", "4") as small,
        httpx.Client(base_url=small.http, timeout=PATIENCE_S) as http,
    ):
        body = json.dumps(input_json(FILE, **LONG)).encode()
        with hanging_up(small.http, "/v2/models/cifar10-vit/explain", body):
            wait_until_explaining(http, "cifar10-vit")
            refused = http.post("/v2/models/sentiment/explain", json=input_json(TEXT))
            assert refused.status_code == 429
            assert refused.json() == {"error": "1 explanations are being computed, the limit is 1"}
            assert int(refused.headers["retry-after"]) >= 1
            assert http.post("/models/cifar10-vit", content=FILE).status_code == 200
        floats = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
        bare = http.post("/v2/models/double/explain", json=floats)
        assert bare.status_code == 400
        assert bare.json() == {"error": "model 'double' takes tensors; texts and images can be explained"}


def test_an_admitted_explanation_is_answered_after_sigterm(tmp_path: Path) -> None:
    """All of its evaluations are computed, and the server then exits normally."""
    (tmp_path / "cifar10-vit").symlink_to(ROOT / "model_store/cifar10-vit")
    body = input_json(FILE, method="shap", n_samples=600)
    # The evaluations run at idle priority: on a busy machine they may take longer than the usual time of the drain.
    waits = ("--drain-timeout-s", str(START_S), "--default-timeout-s", str(2 * START_S))
    with running_server(tmp_path, *waits) as ending, httpx.Client(base_url=ending.http, timeout=PATIENCE_S) as http:
        with ThreadPoolExecutor(1) as pool:
            url = f"{ending.http}/v2/models/cifar10-vit/explain"
            explaining = pool.submit(httpx.post, url, json=body, timeout=None)
            wait_until_explaining(http, "cifar10-vit")
            assert ending.stop() == 0
            answer = explaining.result(PATIENCE_S)
        assert answer.status_code == 200
        assert answer.json()["fidelity"]["evaluations"] > 500
