"""The gRPC services: the Open Inference Protocol, and the typed calls of heed.proto."""

import contextlib
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any, ClassVar

from proto import heed_pb2, inference_pb2
from service.errors import InvalidRequest, NotFound
from service.prediction.messages import (
    AnswerOptions,
    AttentionSelector,
    ExplainRequest,
    Explanation,
    Receipt,
    RequestOptions,
)
from service.tasks.classification import Classification
from service.tasks.images.image_classification import ImageClassification
from service.tasks.text.classification import TextClassification
from service.tasks.translation import Translated, Translation
from service.tensors import Arrays, TensorSpec, bytes_array
from service.transport.extension_documents import check_not_streamed
from service.transport.grpc.endpoint import Context, FramedService, bounded
from service.transport.grpc.messages import EXPLAIN, IMAGE, TEXT
from service.transport.grpc.model_administration import ModelAdministration
from service.transport.grpc.tensors import (
    InferMessage,
    byte_elements_of,
    check_counts,
    is_raw_only,
    is_short,
    long_answer,
    read_inputs,
    read_message,
    read_outputs,
    values_of,
    write_outputs,
)
from service.transport.request_metadata import MAX_READ_AT_ONCE, NO_PARAMETERS, earliest, parameters_of
from service.transport.unoffered import ALL_OUTPUTS
from service.version import installed_version

# Optional fields of ExplainRequest; the last three are the fields of `AttentionSelector`.
EXPLAIN_FIELDS = ("target", "n_samples", "seed", "part", "layer", "head")

# Names of the inputs in error messages: the messages' field names.
TEXT_FIELD, IMAGE_FIELD = "text", "image"


class InferenceService(ModelAdministration):
    """The six calls of the Open Inference Protocol, and Triton's extensions but for the stream of requests."""

    readers: ClassVar = {"ModelInfer": read_message, **ModelAdministration.refused_readers}
    calls_with_id: ClassVar = ("ModelInfer",)

    async def ServerLive(self, request: Any, context: Context, request_id: str) -> inference_pb2.ServerLiveResponse:
        """Report that the process is alive."""
        return inference_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Context, request_id: str) -> inference_pb2.ServerReadyResponse:
        """Report whether the server is ready."""
        return inference_pb2.ServerReadyResponse(ready=self._predictor.catalog.not_ready_because() is None)

    async def ModelReady(self, request: Any, context: Context, request_id: str) -> inference_pb2.ModelReadyResponse:
        """Report whether a model is ready; one that the store does not have is not, as Triton answers."""
        try:
            problem = self._predictor.catalog.problem_of(request.name, request.version)
        except NotFound as error:
            problem = str(error)
        return inference_pb2.ModelReadyResponse(ready=problem is None)

    async def ServerMetadata(
        self, request: Any, context: Context, request_id: str
    ) -> inference_pb2.ServerMetadataResponse:
        """Return the name and the version of the server."""
        return inference_pb2.ServerMetadataResponse(
            name=self._predictor.catalog.server_name,
            version=installed_version(),
            extensions=self._predictor.catalog.extensions,
        )

    async def ModelMetadata(
        self, request: Any, context: Context, request_id: str
    ) -> inference_pb2.ModelMetadataResponse:
        """Return the tensors of a model."""
        model = self._predictor.catalog.describe(request.name, request.version)
        return inference_pb2.ModelMetadataResponse(
            name=model.name,
            versions=model.versions,
            platform=model.platform,
            inputs=[_tensor_metadata(spec) for spec in model.inputs],
            outputs=[_tensor_metadata(spec) for spec in model.outputs],
            # Properties are left out: MLServer's client expects another type in this field and would fail to parse.
        )

    async def ModelInfer(
        self, message: InferMessage, context: Context, request_id: str
    ) -> inference_pb2.ModelInferResponse | bytes:
        """Answer tensors with tensors."""
        request = message.request
        call = infer_options(request, context, request_id)
        inputs = read_inputs(message, MAX_READ_AT_ONCE)
        if inputs is None:
            inputs = await self._read_in_thread(message, call)
        # A request without inputs has neither form. It gets the raw one, the only one that all clients read.
        is_raw = self._raw_outputs or len(message.raw) > 0 or not inputs
        message.raw.clear()  # long inputs have been copied, and the request may wait for long
        wanted = read_outputs(request) if request.outputs else ALL_OUTPUTS
        outputs, receipt = await self._predictor.infer(call, inputs, *wanted)
        response = inference_pb2.ModelInferResponse(
            model_name=request.model_name,
            model_version=receipt.model_version,
            id=request.id or request_id,
        )
        add_receipt(response, receipt)
        is_raw = is_raw or is_raw_only(outputs)
        if not is_short(outputs, raw=is_raw):
            return await self._turns.in_thread(partial(long_answer, response, outputs, raw=is_raw))
        write_outputs(response, outputs, raw=is_raw)
        return response

    async def _read_in_thread(self, message: InferMessage, call: RequestOptions) -> Arrays:
        """Read long input tensors, after a check that the model takes so many elements."""
        self._predictor.check_target(call.model, call.version, byte_elements_of(message.request))
        inputs = await self._turns.in_thread(partial(read_inputs, message))
        assert inputs is not None
        return inputs


def infer_options(request: inference_pb2.ModelInferRequest, context: Context, request_id: str) -> RequestOptions:
    """Read the options of an inference request.

    Raises:
        InvalidRequest: the request has too many tensors or parameters, or a parameter is wrong.
    """
    check_counts(request)
    parameters = NO_PARAMETERS
    if request.parameters:
        given = values_of(request.parameters)
        check_not_streamed(given)
        parameters = parameters_of(given)
    return RequestOptions(
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


def add_receipt(response: inference_pb2.ModelInferResponse, receipt: Receipt) -> None:
    """Add the receipt to the parameters of a response."""
    written = response.parameters
    for name, value in receipt.as_parameters().items():
        if value is True or value is False:
            written[name].bool_param = value
        else:
            written[name].int64_param = value


class HeedService(FramedService):
    """The typed calls."""

    readers: ClassVar = {
        "ClassifyText": bounded(TEXT, heed_pb2.ClassifyTextRequest.FromString),
        "ClassifyImage": bounded(IMAGE, heed_pb2.ClassifyImageRequest.FromString),
        "Translate": bounded(TEXT, heed_pb2.TranslateRequest.FromString),
        "TranslateStream": bounded(TEXT, heed_pb2.TranslateRequest.FromString),
        "Explain": bounded(EXPLAIN, heed_pb2.ExplainRequest.FromString),
    }

    async def ClassifyText(
        self, request: heed_pb2.ClassifyTextRequest, context: Context, request_id: str
    ) -> heed_pb2.ClassifyTextResponse:
        """Classify a text."""
        call = RequestOptions(
            model=request.model,
            version=request.version,
            protocol="grpc",
            request_id=request_id,
            timeout_s=context.time_remaining(),
            truncate=request.truncate,
        )
        (classification,), receipt = await self._predictor.answer(call, TextClassification, [request.text], TEXT_FIELD)
        return heed_pb2.ClassifyTextResponse(**_classification(classification, receipt))

    async def ClassifyImage(
        self, request: heed_pb2.ClassifyImageRequest, context: Context, request_id: str
    ) -> heed_pb2.ClassifyImageResponse:
        """Classify an image."""
        call = RequestOptions(
            model=request.model,
            version=request.version,
            protocol="grpc",
            request_id=request_id,
            timeout_s=context.time_remaining(),
        )
        (classification,), receipt = await self._predictor.answer(
            call, ImageClassification, [request.image], IMAGE_FIELD, AnswerOptions(top_k=request.top_k or None)
        )
        return heed_pb2.ClassifyImageResponse(**_classification(classification, receipt))

    async def Translate(
        self, request: heed_pb2.TranslateRequest, context: Context, request_id: str
    ) -> heed_pb2.TranslateResponse:
        """Translate a text."""
        call = _translation_call(request, context, request_id)
        (translated,), receipt = await self._predictor.answer(call, Translation, [request.text], TEXT_FIELD)
        return _translation(translated, receipt)

    async def TranslateStream(self, request: heed_pb2.TranslateRequest, context: Context, request_id: str) -> None:
        """Translate a text, and send the translation piece by piece."""
        call = _translation_call(request, context, request_id)
        async with contextlib.aclosing(self._predictor.stream_translation(call, request.text)) as pieces:
            async for piece in pieces:
                if isinstance(piece, str):
                    await self._write(context, heed_pb2.TranslateChunk(text=piece))
                else:
                    await self._write(context, heed_pb2.TranslateChunk(whole=_translation(*piece)))

    async def Explain(
        self, request: heed_pb2.ExplainRequest, context: Context, request_id: str
    ) -> heed_pb2.ExplainResponse:
        """Explain the answer to a text or an image by the weights of its parts."""
        given = request.WhichOneof("input")
        if given is None:
            raise InvalidRequest("the request has no input: text or image")
        element = request.text.encode() if given == "text" else request.image
        target, n_samples, seed, *selector = (_given(request, name) for name in EXPLAIN_FIELDS)
        asked = ExplainRequest(request.method or None, target, n_samples, seed, AttentionSelector(*selector))
        call = _translation_call(request, context, request_id)
        inputs = {given: bytes_array([element])}
        explained, receipt = await self._predictor.explain(call, inputs, asked, field=given)
        return _explanation(explained.explanation, receipt)


def _given(request: Any, name: str) -> Any:
    """Return an optional field, or None if it is not set."""
    return getattr(request, name) if request.HasField(name) else None


def _translation_call(
    request: heed_pb2.TranslateRequest | heed_pb2.ExplainRequest, context: Context, request_id: str
) -> RequestOptions:
    return RequestOptions(
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
    """Return the fields of a classification, which texts and images have in common."""
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


def _tensor_metadata(
    spec: TensorSpec,
) -> inference_pb2.ModelMetadataResponse.TensorMetadata:
    return inference_pb2.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)
