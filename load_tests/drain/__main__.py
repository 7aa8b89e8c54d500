"""`python -m load_tests.drain`: users send requests while the server is stopped; reports the outcome of each request.

A user sends its next request after an answer, and stops after the first request without one. "at work" is
printed when all users have had an answer, and a report in JSON when all have stopped. It lists the ids of requests,
which are in the server's log too (`--log-level debug`), by outcome:

answered    with a label
refused     the server answered that it is shutting down
unanswered  no response: no connection, or one that was closed. A connection may be closed just when a request is
            sent on it (RFC 9112, 9.5), so only the server's log tells whether such a request was admitted
failed      anything else

Exit status 1 when a request failed, or the server was not stopped in time.
"""

import argparse
import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass, field

import aiohttp
import grpc

from load_tests.material import load_sentences
from proto import heed_pb2, heed_pb2_grpc

SHUTS_DOWN = "the server is shutting down"  # part of the server's error
REQUEST_TIMEOUT_S = 30.0

# Sends a text with an id; raises one of the three errors below if no label comes back.
Ask = Callable[[str, str], Awaitable[None]]
Client = AbstractAsyncContextManager[Ask]


class Refused(Exception):
    """The server is shutting down."""


class Unanswered(Exception):
    """The server did not respond; the message names the error."""


class Failed(Exception):
    """The server responded with another error."""


@dataclass
class Report:
    """Outcomes of all requests, by their ids."""

    answered: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    unanswered: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    users_left: int = 0  # users that were still active at the end


def main() -> int:
    """Run the users and report the outcomes."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.drain", description=__doc__)
    parser.add_argument(
        "--http", default="http://127.0.0.1:8080", metavar="URL", help="address of the server over HTTP"
    )
    parser.add_argument("--grpc", default="127.0.0.1:8081", metavar="HOST:PORT", help="address of the server over gRPC")
    parser.add_argument("--model", default="sentiment", help="name of a text classifier", metavar="MODEL")
    parser.add_argument(
        "--users", type=int, default=16, help="number of users, half over HTTP and half over gRPC", metavar="N"
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="time within which the server must be stopped", metavar="SECONDS"
    )
    arguments = parser.parse_args()
    report = asyncio.run(drive(arguments.http, arguments.grpc, arguments.model, arguments.users, arguments.seconds))
    print(json.dumps(asdict(report)), flush=True)
    return 1 if report.failed or report.users_left else 0


async def drive(http: str, grpc_address: str, model: str, num_users: int, limit_s: float) -> Report:
    """Run all users, until they have stopped or the time is over."""
    report, numbers, texts = Report(), itertools.count(), load_sentences().texts
    num_at_work = 0

    async def send_next(ask: Ask) -> bool:
        number = next(numbers)
        return await one_request(ask, f"drain-{number}", texts[number % len(texts)], report)

    async def work(client: Client) -> None:
        nonlocal num_at_work
        async with client as ask:
            if await send_next(ask):
                num_at_work += 1
                if num_at_work == num_users:
                    print("at work", flush=True)
                while await send_next(ask):
                    pass

    clients = [
        http_client(http, model) if number % 2 else grpc_client(grpc_address, model) for number in range(num_users)
    ]
    users = [asyncio.create_task(work(client)) for client in clients]
    done, late = await asyncio.wait(users, timeout=limit_s)
    for user in late:
        user.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for user in done:
        user.result()
    report.users_left = len(late)
    return report


async def one_request(ask: Ask, request_id: str, text: str, report: Report) -> bool:
    """Send a request and record its outcome; return whether it was answered."""
    try:
        await ask(request_id, text)
    except Refused:
        report.refused.append(request_id)
    except Unanswered as error:
        report.unanswered[request_id] = str(error)
    except Failed as error:
        report.failed[request_id] = str(error)
    else:
        report.answered.append(request_id)
        return True
    return False


@asynccontextmanager
async def http_client(base: str, model: str) -> AsyncIterator[Ask]:
    """Open a client of the task API over HTTP, with one persistent connection."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(REQUEST_TIMEOUT_S)) as session:

        async def ask(request_id: str, text: str) -> None:
            url, headers = f"{base}/models/{model}", {"x-request-id": request_id}
            try:
                async with session.post(url, json={"inputs": text}, headers=headers) as response:
                    body = await response.json()
            except aiohttp.ClientConnectionError as error:
                raise Unanswered(f"HTTP: {type(error).__name__}") from error
            except (aiohttp.ClientError, TimeoutError) as error:  # including a truncated response
                raise Failed(f"HTTP: {error!r}") from error
            if response.status == 503 and body["error"] == SHUTS_DOWN:
                raise Refused
            if response.status != 200 or "label" not in body[0][0]:
                raise Failed(f"HTTP: {response.status} {body}")

        yield ask


@asynccontextmanager
async def grpc_client(address: str, model: str) -> AsyncIterator[Ask]:
    """Open a client of the typed gRPC call, with one channel."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = heed_pb2_grpc.HeedStub(channel)

        async def ask(request_id: str, text: str) -> None:
            request = heed_pb2.ClassifyTextRequest(model=model, text=text)
            metadata = (("x-request-id", request_id),)
            try:
                answer = await stub.ClassifyText(request, timeout=REQUEST_TIMEOUT_S, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise Failed(f"gRPC: {error.code().name} {error.details()}") from error
                if error.details() == SHUTS_DOWN:
                    raise Refused from error
                raise Unanswered(f"gRPC: {error.details()}") from error
            if not answer.label:
                raise Failed(f"gRPC: no label in {answer}")

        yield ask


if __name__ == "__main__":
    sys.exit(main())
