"""The gRPC face: the Open Inference Protocol, the typed calls, standard health and reflection."""

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import chain
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import numpy as np
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from numpy.typing import NDArray

from proto import heed_pb2, heed_pb2_grpc, inference_pb2, inference_pb2_grpc
from service.config import ServiceConfig, address_of
from service.errors import HeedError, InvalidRequest, NotFound, Overloaded
from service.predictor import (
    Call,
    Classification,
    ExplainRequest,
    Explanation,
    Looking,
    Predictor,
    Receipt,
    Translated,
    outcome_of,
)
from service.priority import step_back
from service.tensors import DATATYPE_OF_NUMPY, NUMPY_OF, Arrays, TensorSpec, bytes_array
from service.transport import SERVER_NAME, server_version
from service.transport.codec import MAX_DIMENSIONS, check_header, decode_raw, encode_raw
from service.transport.frame import (
    MOST_READ_AT_ONCE,
    NO_PARAMETERS,
    REQUEST_ID_HEADER,
    earliest,
    parameters_of,
    request_id_of,
)
from service.transport.grpc_calls import Handlers, take_calls_at_once
from service.transport.spans import TRACED_CALLS, traced_call
from service.transport.status import INTERNAL, STATUS_OF, internal_error_text

if TYPE_CHECKING:  # it needs an extra
    from service.tracing import Tracing

log = structlog.get_logger(__name__)
T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

# Fields of ExplainRequest that may be left open; the last three are those of `Looking`.
EXPLAIN_FIELDS = ("target", "n_samples", "seed", "part", "layer", "head")

# Field of InferTensorContents by datatype; FP16 travels only raw.
CONTENTS_OF = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


async def start_grpc(
    predictor: Predictor, config: ServiceConfig, tracing: "Tracing | None" = None
) -> tuple[grpc.aio.Server, int]:
    """Start listening; the server and its port.

    Raises:
        RuntimeError: the port is taken.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", config.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            # Two servers on one port would share out the requests between them, without a word.
            ("grpc.so_reuseport", 0),
            # Identity alone: gRPC compares a message with the limit after it has unpacked it, and gzip makes a
            # thousand bytes of one.
            ("grpc.compression_enabled_algorithms_bitset", 1),
        ]
    )
    handlers = Handlers()
    inference = InferenceService(predictor, tracing)
    inference.register(inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server, handlers)
    heed = HeedService(predictor, tracing)
    heed.register(heed_pb2_grpc.add_HeedServicer_to_server, handlers)
    health_pb2_grpc.add_HealthServicer_to_server(Health(predictor), handlers)
    reflected = reflection.aio.ReflectionServicer([*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME])
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflected, handlers)
    server.add_generic_rpc_handlers(tuple(handlers.all))
    port = server.add_insecure_port(address_of(config.host, config.grpc_port))
    await server.start()
    if not take_calls_at_once(server, handlers.all):
        log.warning("this version of gRPC hands on one call at a time", grpcio=grpc.__version__)
    for thread in threading.enumerate():
        if thread.name.endswith(POLLER):
            step_back(thread, by=POLLER_STEPS_BACK)
    return server, port


# gRPC's thread that waits for sockets and hands on what comes. On a busy core it would interrupt for each message; a
# little behind the others it hands on several at once (docs/decisions.md).
POLLER = "(_poll_wrapper)"
POLLER_STEPS_BACK = 5
WATCH_INTERVAL_S = 1.0
SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
    heed_pb2.DESCRIPTOR.services_by_name["Heed"].full_name,
)


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the library has no types
    """grpc.health.v1: the whole server under "", each of its services, and each model under its name.

    Not the library's servicer: that one tells what was so when it was last told, and forgets a watcher when another one
    of the same name leaves.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def _status(self, name: str) -> Any:
        """What is so now."""
        try:
            whole = name == "" or name in SERVICES
            problem = self._predictor.not_ready_because() if whole else self._predictor.problem_of(name)
        except NotFound:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        return health_pb2.HealthCheckResponse.NOT_SERVING if problem else health_pb2.HealthCheckResponse.SERVING

    async def Check(self, request: Any, context: Context) -> Any:
        """Whether one of them would answer now."""
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"nothing here is called {request.service!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Context) -> None:
        """The same, now and after each change; ends when the client leaves or the server does."""
        told = None
        while True:
            last = self._predictor.draining  # asked first: the end may come while something is written
            status = self._status(request.service)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            if last:
                return
            # Much of what it goes by changes without a word, such as an engine call that does not come back.
            await asyncio.sleep(WATCH_INTERVAL_S)


# Calls whose messages have an id of their own, and carry it back.
CALLS_WITH_ID = ("ModelInfer",)


class _Framed:
    """What every call shares: its request id, and its errors as status codes.

    The calls themselves are methods of the names that the protocol gives them; beside the message and gRPC's context
    they take the request's id.
    """

    def __init__(self, predictor: Predictor, tracing: "Tracing | None" = None) -> None:
        self._predictor, self._tracing = predictor, tracing

    def register(self, add_to_server: Callable[[Any, Any], None], handlers: Handlers) -> None:
        """Add the calls of this service, by the generated code."""

        def add(service: str, methods: dict[str, Any]) -> None:
            framed = {name: self._framed(name, handler) for name, handler in methods.items()}
            if self._tracing is not None:
                for name in framed.keys() & TRACED_CALLS:
                    framed[name] = traced_call(framed[name], f"{service}/{name}", self._tracing)
            handlers.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, framed),))

        # The generated code registers every call twice, for the two kinds of server.
        add_to_server(
            self,
            SimpleNamespace(add_registered_method_handlers=add, add_generic_rpc_handlers=lambda _: None),
        )

    def _framed(self, name: str, handler: Any) -> Any:
        """A call's handler, whose behaviour is given the request's id as well; it goes back as trailing metadata.

        A message with an id of its own carries it back itself: metadata that nobody sent would cost 4 % of what the
        server spends on a request without a model (docs/decisions.md).
        """
        kind = "unary_unary" if handler.unary_unary else "unary_stream"
        behaviour, deserialize, has_id = getattr(handler, kind), handler.request_deserializer, name in CALLS_WITH_ID

        async def answer(message: bytes, context: Context) -> Any:
            request, problem = None, ""
            try:
                request = deserialize(message)
            except DecodeError as error:
                problem = f"the message is not what this call takes: {error}"
            own_id = request.id if has_id and request is not None else None
            header = _metadata(context, REQUEST_ID_HEADER)
            request_id = request_id_of(header or own_id)
            metadata: tuple[tuple[str, str], ...] = ((REQUEST_ID_HEADER, request_id),)
            try:
                if header or own_id is None:
                    context.set_trailing_metadata(metadata)
                if request is None:
                    raise InvalidRequest(problem)
                return await behaviour(request, context, request_id)
            except HeedError as error:
                status, text = STATUS_OF[type(error)], str(error)
                if (asked := _asked(name, request)) and not error.counted:
                    self._predictor.count_failure(*asked, "grpc", request_id, outcome_of(error), text)
                if isinstance(error, Overloaded):
                    # Understood by gRPC clients that retry by themselves (gRFC A6).
                    metadata = (
                        *metadata,
                        ("grpc-retry-pushback-ms", str(int(1e3 * error.retry_after_s) + 1)),
                    )
            except Exception:
                log.exception("unexpected error", request_id=request_id)
                status, text = INTERNAL, internal_error_text(request_id)
            await context.abort(status.grpc, text, metadata)
            raise AssertionError("abort has raised")

        return handler._replace(request_deserializer=None, **{kind: answer})


def _asked(name: str, request: Any) -> tuple[str, str] | None:
    """Which model and version a message asks, for failures are counted by them; empty where it could not be read."""
    if request is None:
        return "", ""
    if name not in TRACED_CALLS:
        return None
    return (request.model_name, request.model_version) if name == "ModelInfer" else (request.model, request.version)


class InferenceService(_Framed):
    """The six calls of the Open Inference Protocol."""

    async def ServerLive(self, request: Any, context: Context, request_id: str) -> inference_pb2.ServerLiveResponse:
        """The process lives."""
        return inference_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Context, request_id: str) -> inference_pb2.ServerReadyResponse:
        """The server would answer correctly now."""
        return inference_pb2.ServerReadyResponse(ready=self._predictor.not_ready_because() is None)

    async def ModelReady(self, request: Any, context: Context, request_id: str) -> inference_pb2.ModelReadyResponse:
        """One model would answer correctly now."""
        problem = self._predictor.problem_of(request.name, request.version)
        return inference_pb2.ModelReadyResponse(ready=problem is None)

    async def ServerMetadata(
        self, request: Any, context: Context, request_id: str
    ) -> inference_pb2.ServerMetadataResponse:
        """Name and version of the server."""
        return inference_pb2.ServerMetadataResponse(
            name=SERVER_NAME, version=server_version(), extensions=self._predictor.extensions
        )

    async def ModelMetadata(
        self, request: Any, context: Context, request_id: str
    ) -> inference_pb2.ModelMetadataResponse:
        """Tensors of a model."""
        model = self._predictor.describe(request.name, request.version)
        return inference_pb2.ModelMetadataResponse(
            name=model.name,
            versions=model.versions,
            platform=model.platform,
            inputs=[_tensor_metadata(spec) for spec in model.inputs],
            outputs=[_tensor_metadata(spec) for spec in model.outputs],
            # No properties: MLServer's client has another type of field in their place, and could read nothing.
        )

    async def ModelInfer(
        self, request: inference_pb2.ModelInferRequest, context: Context, request_id: str
    ) -> inference_pb2.ModelInferResponse:
        """Tensors in, tensors out."""
        given = request.parameters
        parameters = parameters_of({name: _value(given[name]) for name in given}) if given else NO_PARAMETERS
        call = Call(
            model=request.model_name,
            version=request.model_version,
            protocol="grpc",
            request_id=request_id,
            timeout_s=earliest(context.time_remaining(), parameters.timeout_s),
            truncate=parameters.truncate,
            num_beams=parameters.num_beams,
            max_new_tokens=parameters.max_new_tokens,
            length_penalty=parameters.length_penalty,
        )
        inputs = read_inputs(request, MOST_READ_AT_ONCE)
        if inputs is None:
            self._predictor.check_target(call.model, call.version, byte_elements_of(request))
            inputs = await asyncio.to_thread(read_inputs, request)
            assert inputs is not None
        wanted = [output.name for output in request.outputs] if request.outputs else ()
        outputs, receipt = await self._predictor.infer(call, inputs, wanted)
        response = inference_pb2.ModelInferResponse(
            model_name=request.model_name,
            model_version=receipt.model_version,
            id=request.id or request_id,
        )
        write_outputs(response, outputs, raw=bool(request.raw_input_contents))
        written = response.parameters
        for name, value in receipt.as_parameters().items():
            if value is True or value is False:
                written[name].bool_param = value
            else:
                written[name].int64_param = value
        return response


class HeedService(_Framed):
    """The typed calls."""

    async def ClassifyText(
        self, request: heed_pb2.ClassifyTextRequest, context: Context, request_id: str
    ) -> heed_pb2.ClassifyTextResponse:
        """Text in, label out."""
        call = Call(
            model=request.model,
            version=request.version,
            protocol="grpc",
            request_id=request_id,
            timeout_s=context.time_remaining(),
            truncate=request.truncate,
        )
        (classification,), receipt = await self._predictor.classify_texts(call, [request.text])
        return heed_pb2.ClassifyTextResponse(**_classification(classification, receipt))

    async def ClassifyImage(
        self, request: heed_pb2.ClassifyImageRequest, context: Context, request_id: str
    ) -> heed_pb2.ClassifyImageResponse:
        """Image in, label out."""
        call = Call(
            model=request.model,
            version=request.version,
            protocol="grpc",
            request_id=request_id,
            timeout_s=context.time_remaining(),
        )
        (classification,), receipt = await self._predictor.classify_images(
            call, [request.image], top_k=request.top_k or None
        )
        return heed_pb2.ClassifyImageResponse(**_classification(classification, receipt))

    async def Translate(
        self, request: heed_pb2.TranslateRequest, context: Context, request_id: str
    ) -> heed_pb2.TranslateResponse:
        """Text in, translation out."""
        call = _translation_call(request, context, request_id)
        (translated,), receipt = await self._predictor.translate_texts(call, [request.text])
        return _translation(translated, receipt)

    async def TranslateStream(self, request: heed_pb2.TranslateRequest, context: Context, request_id: str) -> None:
        """Text in, its translation piece by piece."""
        call = _translation_call(request, context, request_id)
        async with contextlib.aclosing(self._predictor.stream_translation(call, request.text)) as pieces:
            async for piece in pieces:
                if isinstance(piece, str):
                    await context.write(heed_pb2.TranslateChunk(text=piece))
                else:
                    await context.write(heed_pb2.TranslateChunk(whole=_translation(*piece)))

    async def Explain(
        self, request: heed_pb2.ExplainRequest, context: Context, request_id: str
    ) -> heed_pb2.ExplainResponse:
        """Text or image in, the weights of its parts out."""
        given = request.WhichOneof("input")
        if given is None:
            raise InvalidRequest("the request has no input: text or image")
        element = request.text.encode() if given == "text" else request.image
        target, n_samples, seed, *looking = (_given(request, name) for name in EXPLAIN_FIELDS)
        asked = ExplainRequest(request.method or None, target, n_samples, seed, Looking(*looking))
        call = _translation_call(request, context, request_id)
        inputs = {given: bytes_array([element])}
        explained, receipt = await self._predictor.explain(call, inputs, asked, field=given)
        return _explanation(explained.explanation, receipt)


def _given(request: Any, name: str) -> Any:
    """A field that may be left open."""
    return getattr(request, name) if request.HasField(name) else None


def _translation_call(
    request: heed_pb2.TranslateRequest | heed_pb2.ExplainRequest, context: Context, request_id: str
) -> Call:
    return Call(
        model=request.model,
        version=request.version,
        protocol="grpc",
        request_id=request_id,
        timeout_s=context.time_remaining(),
        truncate=request.truncate,
        num_beams=_given(request, "num_beams"),
        max_new_tokens=_given(request, "max_new_tokens"),
        length_penalty=_given(request, "length_penalty"),
    )


def _classification(classification: Classification, receipt: Receipt) -> dict[str, Any]:
    """The fields of an answer, which texts and images have in common."""
    return {
        "label": classification.labels[0],
        "score": classification.scores[0],
        "scores": [
            heed_pb2.ClassScore(label=label, score=score)
            for label, score in zip(classification.labels, classification.scores, strict=True)
        ],
        "receipt": heed_pb2.Receipt(**receipt.as_dict()),
    }


def _translation(translated: Translated, receipt: Receipt) -> heed_pb2.TranslateResponse:
    return heed_pb2.TranslateResponse(
        translation=translated.text,
        score=translated.score,
        num_tokens=translated.num_tokens,
        receipt=heed_pb2.Receipt(**receipt.as_dict()),
    )


def _explanation(explanation: Explanation, receipt: Receipt) -> heed_pb2.ExplainResponse:
    influence_MK = explanation.influence or [[]] * len(explanation.words)
    response = heed_pb2.ExplainResponse(
        method=explanation.method,
        target=explanation.target,
        score=explanation.score,
        features=[
            heed_pb2.Feature(text=word.text, start=word.start, end=word.end, weight=weight, influence=influence_K)
            for word, weight, influence_K in zip(explanation.words, explanation.weights, influence_MK, strict=True)
        ],
        target_tokens=explanation.target_tokens,
        overlay=explanation.overlay,
        fidelity=heed_pb2.Fidelity(**asdict(explanation.fidelity)),
        receipt=heed_pb2.Receipt(**receipt.as_dict()),
    )
    if explanation.tokens is not None:
        response.tokens.extend(heed_pb2.ExplainedToken(**token._asdict()) for token in explanation.tokens)
    if (view := explanation.attention) is not None:
        weights = view.weights or []
        told = view._asdict() | {"weights": chain.from_iterable(weights), "rows": len(weights)}
        response.attention.CopyFrom(heed_pb2.Attention(**told))
    if (weights_RC := explanation.patches) is not None:
        response.patches.rows, response.patches.columns = len(weights_RC), len(weights_RC[0])
        response.patches.weights.extend(chain.from_iterable(weights_RC))
    return response


def byte_elements_of(request: inference_pb2.ModelInferRequest) -> int:
    """How many elements a message's BYTES tensors have by their shapes, before anything is checked."""
    shapes = [tensor.shape[:MAX_DIMENSIONS] for tensor in request.inputs if tensor.datatype == "BYTES"]
    return sum(abs(math.prod(shape)) for shape in shapes)


def read_inputs(request: inference_pb2.ModelInferRequest, at_most: int | None = None) -> Arrays | None:
    """The input tensors of a message, from its raw or its typed contents.

    Args:
        request: the message.
        at_most: elements to look at one by one, which those of BYTES tensors and typed contents have to be.

    Returns:
        the tensors by name; None where there are more elements than `at_most`.

    Raises:
        InvalidRequest: they contradict what they say of themselves.
    """
    raw, tensors = request.raw_input_contents, request.inputs
    is_raw = len(raw) > 0
    if is_raw and len(raw) != len(tensors):
        raise InvalidRequest(f"raw_input_contents has {len(raw)} entries for {len(tensors)} inputs")
    arrays: Arrays = {}
    left = math.inf if at_most is None else at_most
    for number, tensor in enumerate(tensors):
        name, datatype = tensor.name, tensor.datatype
        shape: Sequence[int] = tensor.shape
        if name in arrays:
            raise InvalidRequest(f"tensor {name!r} is given twice")
        if is_raw and tensor.HasField("contents"):
            raise InvalidRequest(f"tensor {name!r} has contents beside raw_input_contents; use one of them")
        if len(shape) <= MAX_DIMENSIONS:  # one with more is refused below
            shape = tuple(shape)
            if datatype == "BYTES" or not is_raw:
                left -= abs(math.prod(shape))
                if left < 0:
                    return None
        arrays[name] = decode_raw(name, datatype, shape, raw[number]) if is_raw else _decode_contents(tensor)
    return arrays


def _decode_contents(tensor: inference_pb2.ModelInferRequest.InferInputTensor) -> NDArray[Any]:
    count = check_header(tensor.name, tensor.datatype, tensor.shape)
    if tensor.datatype not in CONTENTS_OF:
        raise InvalidRequest(f"tensor {tensor.name!r}: {tensor.datatype} travels only in raw_input_contents")
    field = CONTENTS_OF[tensor.datatype]
    elements = getattr(tensor.contents, field)
    if other := [known.name for known, _ in tensor.contents.ListFields() if known.name != field]:
        raise InvalidRequest(f"tensor {tensor.name!r}: {tensor.datatype} belongs in {field}, not in {', '.join(other)}")
    if len(elements) != count:
        raise InvalidRequest(f"tensor {tensor.name!r}: {len(elements)} elements, but its shape takes {count}")
    if tensor.datatype == "BYTES":
        return bytes_array(elements).reshape(tensor.shape)
    try:
        return np.array(elements, dtype=NUMPY_OF[tensor.datatype]).reshape(tensor.shape)
    except OverflowError:
        raise InvalidRequest(f"tensor {tensor.name!r}: a number lies outside the range of {tensor.datatype}") from None


def write_outputs(response: inference_pb2.ModelInferResponse, outputs: Arrays, raw: bool) -> None:
    """Fill in the output tensors: raw for a client that sent raw, typed for one that did not (unless it cannot be)."""
    if not raw:
        raw = any(DATATYPE_OF_NUMPY[array.dtype] not in CONTENTS_OF for array in outputs.values())
    for name, array in outputs.items():
        datatype = DATATYPE_OF_NUMPY[array.dtype]
        tensor = response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            response.raw_output_contents.append(encode_raw(array))
        else:
            getattr(tensor.contents, CONTENTS_OF[datatype]).extend(array.ravel().tolist())


def _value(parameter: inference_pb2.InferParameter) -> object:
    chosen = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, chosen) if chosen else None


def _metadata(context: Context, name: str) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return value if isinstance(value, str) else None
    return None


def _tensor_metadata(
    spec: TensorSpec,
) -> inference_pb2.ModelMetadataResponse.TensorMetadata:
    return inference_pb2.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)
