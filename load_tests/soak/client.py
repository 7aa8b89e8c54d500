"""Sends the requests of a soak to two servers, and judges what comes back.

A request is retried on the other server if the connection was refused, if it ended without a whole answer while a
server was being restarted, or if the answer is 503 or UNAVAILABLE. A call that reaches a server just as it stops is
ended by gRPC's core with CANCELLED, which counts as an ended connection. Each retry is counted. After `MAX_ATTEMPTS`
the request is lost. No other request is retried.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp
import grpc

from load_tests.soak.servers import ServerSlot
from load_tests.soak.tally import Outcome, Tally
from load_tests.wire import Answer, Request, StreamFailed
from proto import heed_pb2_grpc, inference_pb2_grpc

MAX_ATTEMPTS = 40
PAUSE_S = 0.25  # between two attempts
ANSWER_S = 120.0  # a request without any answer after this time is lost
SERVER_ERRORS = ("500", "502", "INTERNAL", "UNKNOWN", "DATA_LOSS")
OUT_OF_TIME = ("504", "DEADLINE_EXCEEDED")
OVERLOADED = ("429", "RESOURCE_EXHAUSTED")
CONNECTION_OPTIONS = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))


class Reply(NamedTuple):
    """An HTTP status or a gRPC code, and the content of the answer."""

    status: str
    content: Any


class Unanswered(Exception):
    """An attempt without an answer; it is counted by the message, its reason.

    Attributes:
        refused: the server has not taken the request, so that it may be sent again whatever the servers do.
    """

    def __init__(self, reason: str, *, refused: bool) -> None:
        super().__init__(reason)
        self.refused = refused


class Client:
    """Connections to one server."""

    def __init__(self, slot: ServerSlot) -> None:
        self.slot = slot

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        self._session = await self._stack.enter_async_context(
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
        )
        channel = grpc.aio.insecure_channel(self.slot.grpc, options=CONNECTION_OPTIONS)
        await self._stack.enter_async_context(channel)
        self._infer = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._typed = heed_pb2_grpc.HeedStub(channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def send(self, request: Request) -> Reply:
        """Make one attempt.

        Raises:
            Unanswered: there is no answer.
            TimeoutError: nothing came for `ANSWER_S`.
        """
        return await (self._send_http(request) if request.path else self._send_grpc(request))

    async def _send_http(self, request: Request) -> Reply:
        headers = dict(request.headers)
        if request.timeout_s is not None:
            headers["x-request-timeout-ms"] = str(math.ceil(1e3 * request.timeout_s))
        method, begun = "GET" if request.body is None else "POST", False
        try:
            async with self._session.request(
                method, self.slot.http + request.path, data=request.body, headers=headers
            ) as response:
                begun = True
                return Reply(str(response.status), await response.read())
        except aiohttp.ClientConnectorError as error:
            raise Unanswered("connection refused", refused=True) from error
        except aiohttp.ClientError as error:
            raise Unanswered(
                f"HTTP answer cut short: {error!r}" if begun else "HTTP disconnect", refused=False
            ) from error

    async def _send_grpc(self, request: Request) -> Reply:
        stub = self._infer if request.call == "ModelInfer" else self._typed
        call = getattr(stub, request.call)(request.message, timeout=request.timeout_s or ANSWER_S)
        try:
            content = [message async for message in call] if request.streams else await call
        except grpc.aio.AioRpcError as error:
            status = error.code().name
            if status == "UNAVAILABLE":
                raise Unanswered("UNAVAILABLE", refused=True) from error
            if status == "CANCELLED":
                raise Unanswered("CANCELLED", refused=False) from error
            if status == "DEADLINE_EXCEEDED" and request.timeout_s is None:
                raise TimeoutError from error
            return Reply(status, error.details())
        return Reply("OK", content)


async def ask(clients: Sequence[Client], first: int, request: Request, tally: Tally) -> tuple[Outcome, str]:
    """Send a request until it is answered, and judge the answer.

    Args:
        clients: the clients of both servers.
        first: index of the server that is asked first.
        request: the request.
        tally: counts the retries.

    Returns:
        the outcome, and why.
    """
    for attempt in range(MAX_ATTEMPTS):
        client = clients[(first + attempt) % len(clients)]
        try:
            reply = await _attempt(client, request)
            if reply is None:
                return "cancelled", ""
            if reply.status != "503":
                return judge(request, reply)
            reason = "503"
        except TimeoutError:
            return "lost", f"no answer within {ANSWER_S:g} s"
        except Unanswered as error:
            reason = str(error)
            if not error.refused and not any(each.slot.rolling for each in clients):
                return "lost", f"{reason}, and no server was being rolled"
        tally.add(tally.retries, reason)
        await asyncio.sleep(PAUSE_S)
    return "lost", f"{MAX_ATTEMPTS} attempts, the last one: {reason}"


async def _attempt(client: Client, request: Request) -> Reply | None:
    """Return the reply to one attempt; None when the client has given up on purpose before it came."""
    if request.cancel_after_s is None:
        return await client.send(request)
    sending = asyncio.create_task(client.send(request))
    done, _ = await asyncio.wait([sending], timeout=request.cancel_after_s)
    if done:
        return sending.result()
    sending.cancel()
    # Its result is no longer needed.
    await asyncio.gather(sending, return_exceptions=True)
    return None


def judge(request: Request, reply: Reply) -> tuple[Outcome, str]:
    """Judge an answer: return the outcome and the reason."""
    if not request.status(reply.status):
        if reply.status in OUT_OF_TIME and request.timeout_s is not None:
            return "cancelled", ""
        if reply.status in OVERLOADED and not request.error:
            return "overloaded", ""
        outcome: Outcome = "unexpected" if reply.status in SERVER_ERRORS else "wrong"
        return outcome, f"status {reply.status}: {str(reply.content)[:200]}"
    if request.error or request.expected is None or request.read is None:
        return "right", ""
    return _judge_content(request, request.read, reply.content)


def _judge_content(request: Request, read: Callable[[Any], Answer], content: Any) -> tuple[Outcome, str]:
    try:
        answer = read(content)
    except StreamFailed as error:
        # The status was sent before the deadline passed.
        if "deadline" in str(error) and request.timeout_s is not None:
            return "cancelled", ""
        return "unexpected", f"the stream ended with an error: {error}"
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return "wrong", f"the answer cannot be read: {error!r}"
    return compare(request, answer)


def compare(request: Request, answer: Answer) -> tuple[Outcome, str]:
    """Compare an answer with the expected one."""
    assert request.expected is not None
    texts, numbers = request.expected
    if len(answer.texts) != len(texts):
        return "wrong", f"{len(answer.texts)} texts, not {len(texts)}"
    if answer.numbers:  # some forms have no numbers
        if len(answer.numbers) != len(numbers):
            return "wrong", f"{len(answer.numbers)} numbers, not {len(numbers)}"
        scale = max(map(abs, numbers)) if request.relative else 1.0
        worst = max(
            abs(given - expected) if math.isfinite(given) else math.inf
            for given, expected in zip(answer.numbers, numbers, strict=True)
        )
        if not worst <= request.tolerance * scale:
            return "wrong", f"a number is off by {worst:.3g}, allowed are {request.tolerance * scale:.3g}"
    if answer.texts == texts:
        return "right", ""
    if request.depends_on_company:
        return "moved", ""
    return "wrong", f"{answer.texts[:3]} instead of {texts[:3]}"
