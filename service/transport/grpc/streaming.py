"""The stream of inference requests (ModelStreamInfer of Triton's extensions).

    request 1 ──> answer 1,  request 2 ──> piece, piece, last piece of answer 2,  request 3 ──> error 3,  ...

A request is received when the one before it has been answered. Until then HTTP/2's flow control keeps it with its
client, so that a stream holds the memory of one request.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from proto import inference_pb2
from service.errors import EngineFailed, HeedError, InvalidRequest
from service.prediction.accounting import outcome_of
from service.transport.extension_documents import STREAM
from service.transport.grpc.descriptors import INFERENCE_NAME
from service.transport.grpc.endpoint import Context, abort
from service.transport.grpc.messages import varint
from service.transport.grpc.services import InferenceService, add_receipt, infer_options
from service.transport.grpc.tensors import (
    InferMessage,
    read_inputs,
    read_message,
    read_outputs,
    values_of,
    write_outputs,
)
from service.transport.request_metadata import MAX_READ_AT_ONCE
from service.transport.server_spans import traced_request
from service.transport.status import STATUS_OF, internal_error_text

log = structlog.get_logger(__name__)

# Parameter of a request, which Triton's clients send; it changes nothing, because the last answer to every request is
# marked, and is never empty.
EMPTY_FINAL = "triton_enable_empty_final_response"
# Parameter of every answer on a stream: whether it is the last one to its request.
FINAL = "triton_final_response"


class StreamingInferenceService(InferenceService):
    """All calls of the inference service: those of one request, and the stream of requests."""

    async def ModelStreamInfer(self, _: Any, context: Context) -> None:
        """Answer requests one by one, in their order; an error of a request is its answer, and the stream goes on."""
        task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]  # a call always is one
        method = f"{INFERENCE_NAME}/ModelStreamInfer"
        try:
            while (message := await self._receive(context, task, idle=True)) is not None:
                received = [message]
                del message  # it may be large, and the request may wait for long
                self._activity.working += 1
                try:
                    with traced_request(context, method, self._tracing):
                        await self._answer_request(received, context)
                finally:
                    self._activity.working -= 1
        except HeedError as error:
            await abort(context, STATUS_OF[type(error)].grpc, str(error))

    async def _answer_request(self, received: list[bytes], context: Context) -> None:
        """Send the answers to one request, or its error.

        Args:
            received: the message, which is taken out.
            context: gRPC's context of the call.
        """
        request, request_id, num_reserved = None, "", 0
        try:
            message = received.pop()
            num_reserved = self._receiver.reserve(len(message))
            request = read_message(message)
            del message
            request_id = self._request_ids.choose(request.id)
            async with contextlib.aclosing(self._answers(request, context, request_id)) as answers:
                async for answer in answers:
                    await self._send(context, answer)
        except HeedError as error:
            await self._send_error(context, request, request_id, error)
        except DecodeError as error:
            problem = InvalidRequest(f"the message is not a request of this call: {error}")
            await self._send_error(context, None, request_id, problem)
        except (grpc.aio.AbortError, grpc.aio.InternalError, grpc.aio.UsageError):
            raise  # the call has ended
        except Exception:
            request_id = request_id or self._request_ids.choose(None)
            log.exception("unexpected error", request_id=request_id)
            failure = EngineFailed(internal_error_text(request_id))
            failure.counted = True  # by the request's account
            await self._send_error(context, request, request_id, failure)
        finally:
            self._receiver.release(num_reserved)

    async def _answers(
        self, message: InferMessage, context: Context, request_id: str
    ) -> AsyncGenerator[list[bytes], None]:
        """Yield the answers to one request, each in parts that form a ModelInferResponse when joined."""
        in_pieces = _take_flags(message.request)
        if not in_pieces:
            response = await self.ModelInfer(message, context, request_id)
            yield [response if isinstance(response, bytes) else response.SerializeToString(), _FINAL_PART[True]]
            return
        request = message.request
        call = infer_options(request, context, request_id)
        inputs = read_inputs(message, MAX_READ_AT_ONCE)
        if inputs is None:
            inputs = await self._read_in_thread(message, call)
        is_raw = self._raw_outputs or len(message.raw) > 0
        message.raw.clear()
        wanted, num_classes = read_outputs(request)
        if num_classes:
            raise InvalidRequest("classification is not offered for an answer in pieces")
        async with contextlib.aclosing(self._predictor.stream_infer(call, inputs, wanted)) as pieces:
            async for outputs, version, receipt in pieces:
                response = inference_pb2.ModelInferResponse(
                    model_name=request.model_name, model_version=version, id=request.id or request_id
                )
                if receipt is not None:
                    add_receipt(response, receipt)
                write_outputs(response, outputs, raw=is_raw)
                yield [response.SerializeToString(), _FINAL_PART[receipt is not None]]

    async def _send(self, context: Context, answer: list[bytes]) -> None:
        """Send one answer, which keeps its memory until the client reads it or leaves, like the answer to a call.

        Raises:
            Overloaded: there is no memory for it.
        """
        head = b"\x12" + varint(sum(map(len, answer)))  # field 2, infer_response
        encoded = await self._turns.joined([head, *answer])
        num_reserved = self._receiver.reserve(len(encoded))
        try:
            await self._turns.copies(len(encoded))
            await self._write_bytes(context, encoded)
        finally:
            self._receiver.release(num_reserved)

    async def _send_error(
        self, context: Context, message: InferMessage | None, request_id: str, error: HeedError
    ) -> None:
        """Count the error of a request, and send it in the place of an answer."""
        request = inference_pb2.ModelInferRequest() if message is None else message.request
        request_id, text = request_id or self._request_ids.choose(None), str(error)
        if not error.counted:
            asked = (request.model_name, request.model_version)
            self._predictor.accounting.count_failure(*asked, "grpc", request_id, outcome_of(error), text)
        failed = inference_pb2.ModelInferResponse(
            model_name=request.model_name, model_version=request.model_version, id=request.id or request_id
        )
        failed.parameters[FINAL].bool_param = True
        response = inference_pb2.ModelStreamInferResponse(error_message=text, infer_response=failed)
        await self._write_bytes(context, response.SerializeToString())


def _take_flags(request: inference_pb2.ModelInferRequest) -> bool:
    """Remove the parameters of streams from a request, and return whether its answer is to be sent in pieces.

    Raises:
        InvalidRequest: one of them is no truth value.
    """
    flags = dict.fromkeys((STREAM, EMPTY_FINAL), False)
    for name in flags:
        if name in request.parameters:
            value = values_of(request.parameters)[name]
            if not isinstance(value, bool):
                raise InvalidRequest(f"parameter {name!r} must be true or false, not {value!r}")
            flags[name] = value
            del request.parameters[name]
    return flags[STREAM]


def _final_part(*, is_final: bool) -> bytes:
    """Encode the parameter that marks the last answer; appended to an encoded answer, it joins its parameters."""
    part = inference_pb2.ModelInferResponse()
    part.parameters[FINAL].bool_param = is_final
    return part.SerializeToString()


_FINAL_PART = {is_final: _final_part(is_final=is_final) for is_final in (False, True)}
