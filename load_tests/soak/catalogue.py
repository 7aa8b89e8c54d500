"""The requests of a soak: every task over every interprotocol, of mixed sizes; some are cancelled, some are invalid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from load_tests.model_tasks import ModelTask, SoakInput
from load_tests.soak.bad_input import bad_requests
from load_tests.soak.bare_graphs import GRAPHS, draw_input
from load_tests.wire import (
    Answer,
    Request,
    infer_path,
    json_tensor,
    read_outputs,
    read_tensors,
    v2_body,
    v2_tensors,
)
from proto import inference_pb2

MAX_DELAY_S = 0.03  # longest delay of a cancellation, and longest of the short deadlines


@dataclass(frozen=True)
class Model:
    """A trained model of the store."""

    name: str
    task: ModelTask
    tolerance: float  # of its scores
    depends_on_company: bool


@dataclass(frozen=True)
class Item:
    """An input of a trained model."""

    model: Model
    sent: SoakInput

    def reference_request(self) -> Request:
        """Return the request that is sent alone before the soak; all other forms must be answered alike."""
        return Request(**_open_inference_http([self]) | {"kind": "reference"})


def items_of(models: Sequence[Model], count: int) -> list[Item]:
    """Return inputs of every model, about `count` of each."""
    return [Item(model, sent) for model in models for sent in model.task.soak_inputs(count)]


class Catalogue:
    """Draws requests, always the same for a number and a seed."""

    def __init__(self, models: Sequence[Model], references: Mapping[Item, Answer], seed: int) -> None:
        """Set up with the reference answers."""
        self._models = {model.name: model for model in models}
        self._references, self._seed = references, seed
        self._by_model: dict[str, list[Item]] = {model.name: [] for model in models}
        for item in references:
            self._by_model[item.model.name].append(item)
        self._bad = bad_requests({model.name: model.task for model in reversed(models)})

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
        protocol = "HTTP" if "path" in way else "gRPC"
        return Request(kind=f"{graph.name}, {protocol}", expected=expected, relative=True, **way)

    def _trained(self, rng: Random) -> Request:
        weights = [model.task.soak_weight for model in self._models.values()]
        (model,) = rng.choices([*self._models.values()], weights)
        item = rng.choice(self._by_model[model.name])
        rows = [item]
        if model.task.soak_sends_batches and rng.random() < 0.2:
            rows += rng.choices(self._by_model[model.name], k=rng.choice((1, 3, 7, 31)))
        form = rng.choice(FORMS[:2] if len(rows) > 1 else FORMS)
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
        # A classifier outputs score [R] and probabilities [R, C]; a translation only the score.
        scores = [reference.numbers[0] for reference in references]
        others = [number for reference in references for number in reference.numbers[1:]]
        return Answer(texts, (*scores, *others))
    return Answer(texts, references[0].numbers[:1])


# --- forms -----------------------------------------------------------------------------------------------------------


def _open_inference_http(rows: Sequence[Item]) -> dict[str, Any]:
    model, first = rows[0].model, rows[0].sent
    tensors = model.task.tensors([row.sent.given for row in rows])
    body = v2_body(*(json_tensor(name, data) for name, data in tensors.items()), **dict(first.parameters))
    return {"kind": "v2 HTTP", "path": infer_path(model.name), "body": body, "read": read_outputs}


def _open_inference_grpc(rows: Sequence[Item]) -> dict[str, Any]:
    model, raw = rows[0].model, len(rows) % 2 == 1
    tensors, parameters = model.task.tensors([row.sent.given for row in rows]), dict(rows[0].sent.parameters)
    message = v2_tensors(model.name, tensors, raw=raw, **parameters)
    return {"kind": "v2 gRPC", "call": "ModelInfer", "message": message, "read": read_tensors}


def _task_api(rows: Sequence[Item]) -> dict[str, Any]:
    return rows[0].model.task.soak_request(rows[0].model.name, rows[0].sent)


def _typed(rows: Sequence[Item]) -> dict[str, Any]:
    return rows[0].model.task.soak_typed_request(rows[0].model.name, rows[0].sent)


# The first two accept several rows.
FORMS = (_open_inference_http, _open_inference_grpc, _task_api, _typed)
LOOKS = tuple(
    Request(kind="look", path=path) for path in ("/healthz", "/v2", "/v2/models", "/metrics", "/v2/models/soak-double")
)
