"""The requests of a soak: every task over every face, of mixed sizes, some given up, some bad."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from load_tests.material import load_images, load_sentences, load_translations
from load_tests.soak.bad_input import bad_requests
from load_tests.soak.bare_graphs import GRAPHS, draw_input
from load_tests.soak.wire import (
    Answer,
    Request,
    infer_path,
    json_tensor,
    read_chunks,
    read_events,
    read_labels,
    read_outputs,
    read_tensors,
    read_translation,
    read_typed,
    v2_body,
    v2_message,
)
from proto import heed_pb2, inference_pb2

MAX_NEW_TOKENS = 40
MAX_DELAY_S = 0.03  # before a request is given up, and of a deadline that is set to be short


@dataclass(frozen=True)
class Item:
    """An input of a trained model, its reference request, and which of its forms that is."""

    model: str
    task: str
    given: Any  # a text, or an image file
    num_beams: int = 1

    def reference_request(self) -> Request:
        """Return the request that is sent alone before the soak; all other forms must be answered alike."""
        if self.task == "image":
            tensor = json_tensor("image", [base64.b64encode(self.given).decode()])
            body = v2_body(tensor)
        elif self.task == "text":
            body = v2_body(json_tensor("text", [self.given]))
        else:
            tensor = json_tensor("text", [self.given])
            body = v2_body(tensor, num_beams=self.num_beams, max_new_tokens=MAX_NEW_TOKENS)
        return Request(kind="reference", path=infer_path(self.model), body=body, read=read_outputs)


@dataclass(frozen=True)
class Model:
    """A trained model of the store."""

    name: str
    task: str
    tolerance: float  # of its scores
    depends_on_company: bool


def items_of(models: Sequence[Model], count: int) -> list[Item]:
    """Return inputs of every model: about `count` texts or images, a quarter as many sources, by two searches each."""
    sentences, sources = load_sentences().texts, load_translations().texts
    texts = ["bad", "good " * 40, " ".join(sentences[:6])[:600], "?!", *sentences[:count]][:count]
    items = []
    for model in models:
        if model.task == "text":
            items += [Item(model.name, "text", text) for text in texts]
        elif model.task == "image":
            items += [Item(model.name, "image", file) for file in load_images(count).files]
        else:
            translated = ["dog", " ".join(sources[:2]), *sources[:count]][: max(2, count // 4)]
            items += [Item(model.name, "translation", text, beams) for text in translated for beams in (1, 4)]
    return items


class Catalogue:
    """Draws requests, always the same for a number and a seed."""

    def __init__(self, models: Sequence[Model], references: Mapping[Item, Answer], seed: int) -> None:
        """Set up with the reference answers."""
        self._models = {model.name: model for model in models}
        self._references, self._seed = references, seed
        self._by_model: dict[str, list[Item]] = {model.name: [] for model in models}
        for item in references:
            self._by_model[item.model].append(item)
        self._bad = bad_requests(*(_first(models, task) for task in ("text", "image", "translation")))

    def request(self, number: int) -> Request:
        """Return the request of this number."""
        rng = Random(f"{self._seed}-{number}")
        drawn = rng.random()
        if drawn < 0.10:
            return rng.choice(self._bad)
        if drawn < 0.13:
            return rng.choice(LOOKS)
        request = self._bare(rng) if drawn < 0.33 else self._trained(rng)
        drawn = rng.random()
        if drawn < 0.04:
            return _changed(request, f"cancelled: {request.kind}", cancel_after_s=rng.uniform(0, MAX_DELAY_S))
        if drawn < 0.08:
            return _changed(request, f"deadline: {request.kind}", timeout_s=rng.uniform(0.001, MAX_DELAY_S))
        return request

    def _bare(self, rng: Random) -> Request:
        graph, x = rng.choice(GRAPHS), draw_input(rng)
        expected = Answer((), tuple(graph.answer(x).ravel().tolist()))
        if rng.random() < 0.5:
            body = v2_body(json_tensor("x", x.ravel().tolist(), "FP32", x.shape))
            way: dict[str, Any] = {"path": infer_path(graph.name), "body": body, "read": read_outputs}
        else:
            tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=x.shape)
            message = inference_pb2.ModelInferRequest(
                model_name=graph.name, inputs=[tensor], raw_input_contents=[x.tobytes()]
            )
            way = {"call": "ModelInfer", "message": message, "read": read_tensors}
        face = "HTTP" if "path" in way else "gRPC"
        return Request(kind=f"{graph.name}, {face}", expected=expected, relative=True, **way)

    def _trained(self, rng: Random) -> Request:
        # Translations take a decoder step a token: they are drawn less often.
        weights = [1 if model.task == "translation" else 3 for model in self._models.values()]
        (model,) = rng.choices([*self._models.values()], weights)
        item = rng.choice(self._by_model[model.name])
        rows = [item]
        if model.task == "text" and rng.random() < 0.2:
            rows += rng.choices(self._by_model[model.name], k=rng.choice((1, 3, 7, 31)))
        forms = FORMS[model.task]
        form = rng.choice(forms[:2] if len(rows) > 1 else forms)
        request = form(rows)
        return Request(
            **{
                **request,
                "kind": f"{model.name}, {request['kind']}",
                "expected": _expected([self._references[row] for row in rows], request["kind"]),
                "tolerance": model.tolerance,
                "depends_on_company": model.depends_on_company,
            }
        )


def _changed(request: Request, kind: str, **changes: float) -> Request:
    return Request(**{**vars(request), "kind": kind.partition(",")[0], **changes})


def _expected(references: Sequence[Answer], form: str) -> Answer:
    """Return the answer of several rows in the order of a form: each output of all rows after another."""
    texts = tuple(text for reference in references for text in reference.texts)
    if form.startswith("v2"):
        # Outputs of a classifier: score [R], probabilities [R, C]; of a translation the score alone.
        scores = [reference.numbers[0] for reference in references]
        others = [number for reference in references for number in reference.numbers[1:]]
        return Answer(texts, (*scores, *others))
    return Answer(texts, references[0].numbers[:1])


def _first(models: Sequence[Model], task: str) -> str:
    name = next((model.name for model in models if model.task == task), None)
    if name is None:
        raise ValueError(f"the store has no model for the task {task!r}: a soak needs one of each")
    return name


# --- forms -----------------------------------------------------------------------------------------------------------


def _text_v2(rows: Sequence[Item]) -> dict[str, Any]:
    body = v2_body(json_tensor("text", [row.given for row in rows]))
    return {"kind": "v2 HTTP", "path": infer_path(rows[0].model), "body": body, "read": read_outputs}


def _text_v2_grpc(rows: Sequence[Item]) -> dict[str, Any]:
    raw = len(rows) % 2 == 1
    message = v2_message(rows[0].model, "text", [row.given.encode() for row in rows], raw=raw)
    return {"kind": "v2 gRPC", "call": "ModelInfer", "message": message, "read": read_tensors}


def _text_api(rows: Sequence[Item]) -> dict[str, Any]:
    body = json.dumps({"inputs": rows[0].given}).encode()
    return {"kind": "task API", "path": f"/models/{rows[0].model}", "body": body, "read": read_labels}


def _text_typed(rows: Sequence[Item]) -> dict[str, Any]:
    message = heed_pb2.ClassifyTextRequest(model=rows[0].model, text=rows[0].given)
    return {"kind": "typed", "call": "ClassifyText", "message": message, "read": read_typed}


def _image_v2(rows: Sequence[Item]) -> dict[str, Any]:
    body = v2_body(json_tensor("image", [base64.b64encode(row.given).decode() for row in rows]))
    return {"kind": "v2 HTTP", "path": infer_path(rows[0].model), "body": body, "read": read_outputs}


def _image_v2_grpc(rows: Sequence[Item]) -> dict[str, Any]:
    message = v2_message(rows[0].model, "image", [row.given for row in rows], raw=True)
    return {"kind": "v2 gRPC", "call": "ModelInfer", "message": message, "read": read_tensors}


def _image_api(rows: Sequence[Item]) -> dict[str, Any]:
    path = f"/models/{rows[0].model}"
    headers = {"content-type": "image/png"}
    return {"kind": "task API", "path": path, "body": rows[0].given, "headers": headers, "read": read_labels}


def _image_typed(rows: Sequence[Item]) -> dict[str, Any]:
    message = heed_pb2.ClassifyImageRequest(model=rows[0].model, image=rows[0].given)
    return {"kind": "typed", "call": "ClassifyImage", "message": message, "read": read_typed}


def _search(row: Item) -> dict[str, Any]:
    return {"num_beams": row.num_beams, "max_new_tokens": MAX_NEW_TOKENS}


def _translation_v2(rows: Sequence[Item]) -> dict[str, Any]:
    body = v2_body(json_tensor("text", [rows[0].given]), **_search(rows[0]))
    return {"kind": "v2 HTTP", "path": infer_path(rows[0].model), "body": body, "read": read_outputs}


def _translation_v2_grpc(rows: Sequence[Item]) -> dict[str, Any]:
    message = v2_message(rows[0].model, "text", [rows[0].given.encode()], raw=True, **_search(rows[0]))
    return {"kind": "v2 gRPC", "call": "ModelInfer", "message": message, "read": read_tensors}


def _translation_api(rows: Sequence[Item]) -> dict[str, Any]:
    document: dict[str, Any] = {"inputs": rows[0].given, "parameters": _search(rows[0])}
    streams = rows[0].num_beams == 1 and len(rows[0].given) % 2 == 0
    body = json.dumps(document | ({"stream": True} if streams else {})).encode()
    kind, read = ("task API stream", read_events) if streams else ("task API", read_translation)
    return {"kind": kind, "path": f"/models/{rows[0].model}", "body": body, "read": read}


def _translation_typed(rows: Sequence[Item]) -> dict[str, Any]:
    message = heed_pb2.TranslateRequest(model=rows[0].model, text=rows[0].given, **_search(rows[0]))
    if rows[0].num_beams == 1 and len(rows[0].given) % 2:
        return {"kind": "typed stream", "call": "TranslateStream", "message": message, "read": read_chunks}
    return {"kind": "typed", "call": "Translate", "message": message, "read": read_typed}


# The first two take several rows.
FORMS: dict[str, tuple[Callable[[Sequence[Item]], dict[str, Any]], ...]] = {
    "text": (_text_v2, _text_v2_grpc, _text_api, _text_typed),
    "image": (_image_v2, _image_v2_grpc, _image_api, _image_typed),
    "translation": (_translation_v2, _translation_v2_grpc, _translation_api, _translation_typed),
}
LOOKS = tuple(
    Request(kind="look", path=path) for path in ("/healthz", "/v2", "/v2/models", "/metrics", "/v2/models/soak-double")
)
