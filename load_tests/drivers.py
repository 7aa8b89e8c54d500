"""Closed-loop drivers: a fixed number of users, each sending its next request when its last was answered."""

import asyncio
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
import grpc
import msgspec

from proto import inference_pb2, inference_pb2_grpc

START_S = 30.0  # time for a server to listen


@dataclass
class Load:
    """Latencies and batches of a run of requests, measured by the client."""

    requests: int = 0  # answered while all users were active, and the duration
    wall_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    # The batch of each answer: rows, tokens, tokens of padding.
    batches: list[tuple[int, int, int]] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Return throughput, latency percentiles, and means of batch size and padding."""
        ordered = sorted(self.latencies_s)
        answer = {
            "requests": self.requests,
            "requests_per_s": self.requests / self.wall_s,
        }
        for share in (50, 95, 99):
            answer[f"p{share}_ms"] = 1e3 * ordered[min(len(ordered) - 1, len(ordered) * share // 100)]
        if self.batches:
            # A batch of n rows is reported by n answers, so each of them has the weight 1 / n.
            answer["mean_batch_rows"] = mean_batch_rows(Counter(rows for rows, _, _ in self.batches))
            tokens = sum(tokens / rows for rows, tokens, _ in self.batches)
            answer["padded_share"] = sum(padded / rows for rows, _, padded in self.batches) / tokens
        return answer


def mean_batch_rows(answers_by_rows: Mapping[int, int]) -> float:
    """Return the mean rows of a batch, from the number of answers out of batches of each size."""
    return sum(answers_by_rows.values()) / sum(answers / rows for rows, answers in answers_by_rows.items())


async def closed_loop(send: Callable[[int], Awaitable[dict[str, int]]], concurrency: int, count: int) -> Load:
    """Send `count` requests with `concurrency` users; `send` takes the request's number and gives the receipt."""
    load, numbers = Load(), iter(range(count))

    async def user() -> None:
        for number in numbers:
            started_s = time.perf_counter()
            if number == count - 1:
                # Throughput is measured while all users are active: later answers come from a queue that
                # runs empty.
                load.requests, load.wall_s = len(load.latencies_s), started_s - begun_s
            receipt = await send(number)
            load.latencies_s.append(time.perf_counter() - started_s)
            if receipt:
                load.batches.append((receipt["batch_size"], receipt["batch_tokens"], receipt["padded_tokens"]))

    begun_s = time.perf_counter()
    await asyncio.gather(*(user() for _ in range(concurrency)))
    return load


async def drive_grpc(port: int, model: str, texts: Sequence[str], concurrency: int, count: int) -> Load:
    """Drive ModelInfer with raw contents, one text a request."""
    requests = [infer_request(model, text) for text in texts]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        infer = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer

        async def send(number: int) -> dict[str, int]:
            response = await infer(requests[number % len(requests)])
            return {name: value.int64_param for name, value in response.parameters.items()}

        await asyncio.wait_for(channel.channel_ready(), START_S)
        await send(0)
        return await closed_loop(send, concurrency, count)


def infer_request(model: str, text: str) -> inference_pb2.ModelInferRequest:
    """Create a request with one text as a raw BYTES tensor of one element."""
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[1])
    raw = text.encode()
    return inference_pb2.ModelInferRequest(
        model_name=model,
        inputs=[tensor],
        raw_input_contents=[struct.pack("<I", len(raw)) + raw],
    )


async def drive_http(port: int, model: str, texts: Sequence[str], concurrency: int, count: int) -> Load:
    """Drive POST .../infer with JSON, one text a request, over connections that are kept open."""
    url = f"http://127.0.0.1:{port}/v2/models/{model}/infer"
    bodies = [
        msgspec.json.encode({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}]})
        for text in texts
    ]
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def send(number: int) -> dict[str, int]:
            async with session.post(url, data=bodies[number % len(bodies)]) as response:
                body = await response.read()
                response.raise_for_status()
            receipt: dict[str, int] = msgspec.json.decode(body)["parameters"]
            return receipt

        await send(0)
        return await closed_loop(send, concurrency, count)
