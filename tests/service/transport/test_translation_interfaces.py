"""The same text gives the same translation and the same error over every interface, whole or streamed."""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest

from proto import heed_pb2, heed_pb2_grpc, inference_pb2, inference_pb2_grpc
from tests.conftest import Server
from tests.toy_translation import toy_pairs

TEXT, TRANSLATION = "three blue dogs", "Hunde drei blaue"
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def channel(translation_server: Server) -> Iterator[grpc.Channel]:
    """Open a connection to the server."""
    with grpc.insecure_channel(translation_server.grpc) as channel:
        yield channel


@pytest.fixture(scope="module")
def oip(channel: grpc.Channel) -> inference_pb2_grpc.GRPCInferenceServiceStub:
    """Open the Open Inference Protocol over gRPC."""
    return inference_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def typed(channel: grpc.Channel) -> heed_pb2_grpc.HeedStub:
    """Open the typed calls."""
    return heed_pb2_grpc.HeedStub(channel)


@pytest.fixture(scope="module")
def http(translation_server: Server) -> Iterator[httpx.Client]:
    """Open an HTTP client."""
    with httpx.Client(base_url=translation_server.http, timeout=30) as client:
        yield client


def infer_request(texts: list[str], model: str = "dogs", **parameters: Any) -> inference_pb2.ModelInferRequest:
    """Make a request with typed texts."""
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[len(texts)])
    request = inference_pb2.ModelInferRequest(model_name=model, inputs=[tensor])
    request.inputs[0].contents.bytes_contents.extend(text.encode() for text in texts)
    for name, value in parameters.items():
        field = {int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], field, value)
    return request


def infer_json(texts: list[str], **parameters: Any) -> dict[str, Any]:
    """Make the same request as JSON."""
    return {
        "inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}],
        "parameters": parameters,
    }


def events_of(response: httpx.Response) -> list[Any]:
    """Return the documents of a stream of server-sent events."""
    return [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line]


def metric(http: httpx.Client, pattern: str) -> float:
    """Return the value of one series."""
    found = re.search(rf"^{pattern} (\S+)$", http.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("search", [{}, {"num_beams": 4, "length_penalty": 0.5, "max_new_tokens": 20}])
def test_every_interface_gives_the_same_translation(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub,
    typed: heed_pb2_grpc.HeedStub,
    http: httpx.Client,
    search: dict[str, Any],
) -> None:
    """Text and score agree, with and without search parameters."""
    over_grpc = oip.ModelInfer(infer_request([TEXT], **search))
    score = over_grpc.outputs[1].contents.fp32_contents[0]
    assert over_grpc.outputs[0].contents.bytes_contents[0].decode() == TRANSLATION
    over_rest = http.post("/v2/models/dogs/infer", json=infer_json([TEXT], **search)).json()
    assert over_rest["outputs"][0]["data"] == [TRANSLATION]
    assert over_rest["outputs"][1]["data"][0] == pytest.approx(score, abs=1e-5)
    answer = typed.Translate(heed_pb2.TranslateRequest(model="dogs", text=TEXT, **search))
    assert answer.translation == TRANSLATION
    assert answer.score == pytest.approx(score, abs=1e-5)
    assert answer.num_tokens >= 3
    assert answer.receipt.model_version == "1"
    assert answer.receipt.batch_size >= search.get("num_beams", 1)
    for parameters in (search, {"generate_parameters": search, "src_lang": "en", "tgt_lang": "de"}):
        body = {"inputs": TEXT, "parameters": parameters}
        task = http.post("/models/dogs", json=body)
        assert task.json() == [{"translation_text": TRANSLATION}]
        assert int(task.headers["x-heed-compute-us"]) > 0


def test_the_metadata_describes_the_tensors(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub, http: httpx.Client
) -> None:
    """Names, types and shapes match the wire contract."""
    metadata = http.get("/v2/models/dogs").json()
    assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in metadata["outputs"]] == ["translation", "score"]
    assert [output.name for output in oip.ModelMetadata(inference_pb2.ModelMetadataRequest(name="dogs")).outputs] == [
        "translation",
        "score",
    ]


def test_several_texts_and_concurrent_requests_are_translated(
    http: httpx.Client, typed: heed_pb2_grpc.HeedStub
) -> None:
    """Translations keep the order of a request's texts, and concurrent requests equal single ones."""
    sources = toy_pairs(16, 9).source
    alone = [typed.Translate(heed_pb2.TranslateRequest(model="dogs", text=text)).translation for text in sources]
    together = http.post("/models/dogs", json={"inputs": sources}).json()
    assert [entry["translation_text"] for entry in together] == alone

    def translate(number: int) -> str:
        request = heed_pb2.TranslateRequest(model="dogs", text=sources[number % 16], num_beams=1 + number % 3)
        return str(typed.Translate(request).translation)

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(translate, range(96)))
    greedy = {number: answer for number, answer in enumerate(answers) if number % 3 == 0}
    assert all(answer == alone[number % 16] for number, answer in greedy.items())


def test_streams_are_the_translation_in_pieces(typed: heed_pb2_grpc.HeedStub, http: httpx.Client) -> None:
    """Over gRPC and as server-sent events several pieces come first, and the whole last."""
    whole = typed.Translate(heed_pb2.TranslateRequest(model="dogs", text=TEXT))
    chunks = list(typed.TranslateStream(heed_pb2.TranslateRequest(model="dogs", text=TEXT)))
    assert "".join(chunk.text for chunk in chunks) == TRANSLATION
    assert len(chunks) >= 3
    assert chunks[-1].whole.translation == TRANSLATION
    assert chunks[-1].whole.score == pytest.approx(whole.score, abs=1e-5)
    assert not any(chunk.HasField("whole") for chunk in chunks[:-1])
    with http.stream("POST", "/models/dogs", json={"inputs": TEXT, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = events_of(response)
    assert "".join(event["text"] for event in events[:-1]) == TRANSLATION
    assert events[-1]["translation_text"] == TRANSLATION
    assert events[-1]["receipt"]["model_version"] == "1"


WRONG = [
    ({"num_beams": 0}, "num_beams must lie between 1 and 16, not 0"),
    ({"num_beams": 17}, "num_beams must lie between 1 and 16, not 17"),
    ({"max_new_tokens": 0}, "max_new_tokens must lie between 1 and 64, not 0"),
    ({"max_new_tokens": 65}, "max_new_tokens must lie between 1 and 64, not 65"),
    ({"length_penalty": 11.0}, "length_penalty must lie between -10 and 10, not 11.0"),
]


@pytest.mark.parametrize(("search", "text"), WRONG, ids=[text for _, text in WRONG])
def test_every_interface_gives_the_same_error(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub,
    typed: heed_pb2_grpc.HeedStub,
    http: httpx.Client,
    search: dict[str, Any],
    text: str,
) -> None:
    """The error names the parameter and its limit."""
    calls = [
        lambda: oip.ModelInfer(infer_request([TEXT], **search)),
        lambda: typed.Translate(heed_pb2.TranslateRequest(model="dogs", text=TEXT, **search)),
        lambda: list(typed.TranslateStream(heed_pb2.TranslateRequest(model="dogs", text=TEXT, **search))),
    ]
    for number, call in enumerate(calls):
        if number == 2 and search.get("num_beams", 1) > 1:
            continue  # a stream refuses any beams
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details() == text
    for path, body in (
        ("/v2/models/dogs/infer", infer_json([TEXT], **search)),
        ("/models/dogs", {"inputs": TEXT, "parameters": search}),
    ):
        response = http.post(path, json=body)
        assert (response.status_code, response.json()) == (400, {"error": text})


def test_texts_that_cannot_be_translated_are_refused(http: httpx.Client, typed: heed_pb2_grpc.HeedStub) -> None:
    """They are empty, too long, too many, of another model or language, or streamed with beams."""
    long = " ".join(["dogs"] * 80)
    for body, text in (
        ({"inputs": " "}, "inputs is empty"),
        ({"inputs": ["red", ""]}, "inputs[1] is empty"),
        ({"inputs": long}, "inputs has 81 tokens, the model takes at most 64; shorten it, or ask for truncation"),
        ({"inputs": ["red"] * 17}, "the request has 17 texts, the limit is 16 (max_request_rows)"),
        # Before the texts are read, of which the last is empty.
        (
            {"inputs": ["red"] * 8 + [""], "parameters": {"num_beams": 2}},
            "the request has 9 texts x 2 num_beams = 18 rows, the limit is 16 (max_request_rows)",
        ),
        ({"inputs": [""], "parameters": {"num_beams": 17}}, "num_beams must lie between 1 and 16, not 17"),
        ({"inputs": []}, "the request has no inputs"),
        ({"inputs": "red", "parameters": {"tgt_lang": "fr"}}, "tgt_lang is 'fr', the model supports only 'de'"),
        ({"inputs": ["red"], "stream": True}, "inputs must be one text where stream is true"),
        ({"inputs": "red", "parameters": {"num_beams": "four"}}, "Expected `int | float | null`, got `str`"),
        ({"inputs": "red", "parameters": {"num_beams": 1.5}}, "parameter 'num_beams' must be an integer, not 1.5"),
        (
            {"inputs": "red", "parameters": {"generate_parameters": {"do_sample": True}}},
            "'do_sample' is True; only false",
        ),
        ({"inputs": "red", "parameters": {"top_p": 0.5}}, "parameter 'top_p' is 0.5; only 1.0 is offered"),
        ({"inputs": "red", "parameters": {"min_length": 99}}, "min_new_tokens must lie between 0 and 64, not 98"),
        ({"inputs": "red", "parameters": {"max_length": 1}}, "'max_length' must be at least 2, not 1"),
        ({"inputs": "red", "parameters": {"no_repeat_ngram_size": -1}}, "no_repeat_ngram_size must lie between 0"),
        ({"inputs": "red", "parameters": {"repetition_penalty": 0.5}}, "repetition_penalty must lie between 1 and"),
        ({"inputs": "red", "parameters": {"penalty_alpha": 0.6}}, "unknown field `penalty_alpha`"),
        (
            {"inputs": "red", "parameters": {"num_beams": 2, "early_stopping": "never"}},
            "parameter 'early_stopping' is 'never'; with beams only the model's own is offered, True",
        ),
        (
            {"inputs": "red", "parameters": {"candidate_labels": ["a"]}},
            "parameter 'candidate_labels' belongs to zero-shot-classification; model 'dogs' is a translation model",
        ),
        (
            {"inputs": "red", "parameters": {"function_to_apply": "none"}},
            "belongs to text-classification and image-classification; model 'dogs' is a translation model",
        ),
        (
            {"inputs": "red", "parameters": {"num_beams": 2, "generate_parameters": {"num_beams": 4}}},
            "both in parameters and in generate_parameters",
        ),
        (
            {"inputs": "red", "parameters": {"clean_up_tokenization_spaces": True}},
            "clean_up_tokenization_spaces is not",
        ),
        ({"inputs": "red", "parameters": {"truncation": "middle"}}, "Invalid enum value 'middle'"),
        (
            {"inputs": "red " * 3000, "parameters": {"truncation": "only_second"}},
            "12000 characters, the model takes at most 2048 (64 tokens)",
        ),
        ({"inputs": "red " * 3000}, "12000 characters, the model takes at most 2048 (64 tokens)"),
    ):
        response = http.post("/models/dogs", json=body)
        assert response.status_code == 400, body
        assert text in response.json()["error"]
    cut = http.post("/models/dogs", json={"inputs": long, "parameters": {"truncation": "longest_first"}})
    assert cut.status_code == 200
    assert cut.headers["x-heed-truncated"] == "true"
    for call, details in (
        (lambda: typed.Translate(heed_pb2.TranslateRequest(model="sentiment", text="red")), "is not a translation"),
        (lambda: typed.ClassifyText(heed_pb2.ClassifyTextRequest(model="dogs", text="red")), "gives translations"),
        (
            lambda: list(typed.TranslateStream(heed_pb2.TranslateRequest(model="dogs", text="red", num_beams=2))),
            "a stream takes 1",
        ),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert details in (refused.value.details() or "")


def test_parameters_of_the_wrong_type_are_refused(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub, http: httpx.Client
) -> None:
    """Fractions may be text, because some clients cannot send them; beams must be integers."""
    answer = oip.ModelInfer(infer_request([TEXT], num_beams=2, length_penalty="0.5"))
    assert answer.outputs[0].contents.bytes_contents[0].decode() == TRANSLATION
    with pytest.raises(grpc.RpcError) as refused:
        oip.ModelInfer(infer_request([TEXT], length_penalty="long"))
    assert refused.value.details() == "parameter 'length_penalty' must be a number, not 'long'"
    wrong = http.post("/v2/models/dogs/infer", json=infer_json([TEXT], num_beams=1.5))
    assert wrong.json() == {"error": "parameter 'num_beams' must be an integer, not 1.5"}


def test_a_cancelled_stream_frees_its_row(typed: heed_pb2_grpc.HeedStub, http: httpx.Client) -> None:
    """A cancelled call and a closed connection free the row long before the end."""
    rows = r'heed_in_flight_rows\{model="endless",version="1"\}'
    for protocol in ("grpc", "http"):
        ended = rf'heed_requests_total\{{model="endless",outcome="cancelled",protocol="{protocol}",version="1"\}}'
        before = metric(http, ended)
        if protocol == "grpc":
            stream = typed.TranslateStream(heed_pb2.TranslateRequest(model="endless", text=TEXT, max_new_tokens=4000))
            next(stream)
            stream.cancel()
        else:
            body = {"inputs": TEXT, "stream": True, "parameters": {"max_new_tokens": 4000}}
            with http.stream("POST", "/models/endless", json=body) as response:
                next(response.iter_lines())
        gives_up_s = time.monotonic() + PATIENCE_S
        while metric(http, ended) != before + 1 or metric(http, rows):
            assert time.monotonic() < gives_up_s


def test_a_deadline_ends_a_translation(typed: heed_pb2_grpc.HeedStub, http: httpx.Client) -> None:
    """The deadline is gRPC's own or HTTP's header, for whole and streamed translations."""
    request = heed_pb2.TranslateRequest(model="endless", text=TEXT, max_new_tokens=4000)
    with pytest.raises(grpc.RpcError) as expired:
        typed.Translate(request, timeout=0.15)
    assert expired.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    body = {"inputs": TEXT, "parameters": {"max_new_tokens": 4000}}
    response = http.post("/models/endless", json=body, headers={"x-request-timeout-ms": "150"})
    assert response.status_code == 504
    with http.stream(
        "POST", "/models/endless", json=body | {"stream": True}, headers={"x-request-timeout-ms": "150"}
    ) as stream:
        events = events_of(stream)
    assert stream.status_code == 200
    assert events[-1] == {"error": "the deadline passed before the answer was computed"}


def test_parameters_that_change_nothing_are_taken(http: httpx.Client) -> None:
    """Clients send the defaults of generation, null, every spelling of a strategy, and integers as 1.0."""
    plain = http.post("/models/dogs", json={"inputs": TEXT}).raise_for_status().json()
    defaults = {
        "do_sample": False,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1,
        "num_return_sequences": 1.0,
        "repetition_penalty": 1.0,
        "early_stopping": False,
        "min_length": 0,
        "max_length": 512,
        "use_cache": True,
    }
    for parameters in (
        None,
        {},
        dict.fromkeys(defaults),
        dict.fromkeys(("src_lang", "tgt_lang", "truncation", "generate_parameters", "explain", "num_beams")),
        defaults,
        {"generate_parameters": defaults},
        {"do_sample": False, "generate_parameters": {"num_beams": 1.0}},
        {"num_beams": 1.0, "max_new_tokens": 20.0},
        *({"truncation": given} for given in (True, False, "do_not_truncate", "ONLY_FIRST", "LONGEST_FIRST")),
        {"truncation": "only_second"},
    ):
        body = {"inputs": TEXT, "parameters": parameters, "stream": None, "options": None}
        response = http.post("/models/dogs", json=body)
        assert (response.status_code, response.json()) == (200, plain), parameters


def test_parameters_of_other_tasks_are_refused_over_the_open_inference_protocol(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub, http: httpx.Client
) -> None:
    """Search settings do nothing for a classifier, and sampling would change a translation."""
    for model, parameters, text in (
        (
            "sentiment",
            {"num_beams": 2},
            "'num_beams' belongs to translation, summarization and text2text-generation; model 'sentiment' is a text-",
        ),
        ("sentiment", {"length_penalty": 1.0}, "'length_penalty' belongs to translation"),
        ("sentiment", {"min_new_tokens": 1}, "'min_new_tokens' belongs to translation"),
        ("sentiment", {"tgt_lang": "de"}, "'tgt_lang' belongs to translation; model"),
        ("dogs", {"tgt_lang": "fr"}, "tgt_lang is 'fr', the model supports only 'de'"),
        ("dogs", {"min_new_tokens": 65}, "min_new_tokens must lie between 0 and 64, not 65"),
        ("dogs", {"temperature": 0.5}, "'temperature' is 0.5; only 1.0 is offered"),
        ("dogs", {"max_length": 9}, "'max_length' belongs to the task API"),
        ("dogs", {"truncation": "only_first"}, "'truncation' belongs to the task API"),
        ("sentiment", {"top_k": 1}, "'top_k' belongs to the task API"),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            oip.ModelInfer(infer_request(["red"], model, **parameters))
        response = http.post(f"/v2/models/{model}/infer", json=infer_json(["red"], **parameters))
        assert (raised.value.code(), response.status_code) == (grpc.StatusCode.INVALID_ARGUMENT, 400)
        assert text in raised.value.details()
        assert text in response.json()["error"]
    taken = infer_json([TEXT], num_beams=1.0, temperature=1.0, top_p=None, timeout=None, truncate=None)
    answer = http.post("/v2/models/dogs/infer", json=taken).raise_for_status().json()
    assert answer["outputs"][0]["data"] == [TRANSLATION]


def test_a_typed_call_refuses_fields_of_another_task(typed: heed_pb2_grpc.HeedStub) -> None:
    """The error names the field, its task and the model's."""
    for request, text in (
        (heed_pb2.ExplainRequest(model="sentiment", text="fine", num_beams=2), "'num_beams' belongs to translation"),
        (heed_pb2.ExplainRequest(model="sentiment", text="fine", length_penalty=0), "'length_penalty' belongs to"),
        (heed_pb2.ExplainRequest(model="sentiment", image=b"fine"), "unknown input image; the model has text"),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            typed.Explain(request)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert text in raised.value.details()
    for call, other in (
        (lambda: typed.ClassifyText(heed_pb2.ClassifyTextRequest(model="dogs", text="red")), "text-classification"),
        (lambda: typed.ClassifyImage(heed_pb2.ClassifyImageRequest(model="dogs", image=b"")), "image-classification"),
        (lambda: typed.Translate(heed_pb2.TranslateRequest(model="sentiment", text="red")), "translation"),
        (lambda: next(typed.TranslateStream(heed_pb2.TranslateRequest(model="sentiment", text="a"))), "translation"),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            call()
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert f"{other} model; it takes texts" in raised.value.details()
