"""Latency of predictions, alone and while an explanation is being computed.

The server has one core, the load the other. Slices with and without an explanation take turns. One user asks and then
pauses for a random while, so that requests come at any moment of what the explanation computes; 16 users ask without a
pause, which leaves an explanation next to nothing. Explanations follow one another as long as a slice lasts: by
KernelSHAP, whose evaluations share the batcher, and by integrated gradients, whose steps are calls of another graph.

That graph is opened by the first explanation that needs it. What a prediction costs before the first of them, and after
all of them, is measured too: the graph that predicts is the same, and no slower.
"""

import asyncio
import gc
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypedDict

import aiohttp

from load_tests.drivers import closed_loop
from load_tests.model_tasks import ModelTask
from load_tests.processes import DRAIN_AT_ONCE, Process, free_port
from load_tests.store import task_of
from load_tests.wire import json_tensor

MODELS = ("sentiment", "cifar10-vit", "translation-en-de")
USERS = (1, 16)
MAX_PAUSE_S = 0.01  # of the lone user
MAX_TIMES = 1.3
SLICES = 5
WARM_UP = 5  # requests of each user at the beginning of a slice that do not count
HEAD_START_S = 0.1  # between an explanation's request and its slice
EXPLANATION_TIMEOUT_MS = 600_000  # beside busy users an explanation takes long, and it must not end with a 504
STARTS_S = 60.0  # time until an explanation has begun
METHODS = {"shap": 4096, "gradients": 128}  # each with its largest budget


class Round(TypedDict):
    """The figures of one round."""

    requests_ms: dict[str, dict[str, list[float]]]
    """Of each model, number of users and method the milliseconds of all requests, `alone` and `during`."""
    cpu_ms: dict[str, dict[str, float]]
    """Of each model the server's CPU milliseconds a request, `before` all explanations and `after` them."""


async def measure_explanations(store: Path, num_rounds: int, count: int, tell: Callable[[str], None]) -> list[Round]:
    """Measure all rounds, each with a server of its own.

    Args:
        store: a store with the models of the repository.
        num_rounds: number of rounds.
        count: requests of each kind in a round.
        tell: called at the end of each round.
    """
    http = free_port()
    url = f"http://127.0.0.1:{http}"
    tasks = {model: task_of(store, model) for model in MODELS}
    # A garbage collection stops this process for 20 ms, which would count as the server's latency.
    gc.collect()
    gc.freeze()
    rounds = []
    for number in range(num_rounds):
        found = Round(requests_ms={}, cpu_ms={model: {} for model in MODELS})
        with Process(
            "service", *DRAIN_AT_ONCE, "--model-store", str(store), "--http-port", str(http), "--grpc-port", "0"
        ) as server:
            server.wait_until_ready(f"{url}/readyz")
            async with aiohttp.ClientSession() as session:
                for model, task in tasks.items():
                    found["cpu_ms"][model]["before"] = await _cpu_ms(server, session, url, model, task, count)
                for model, task in tasks.items():
                    for users in USERS:
                        for method in METHODS:
                            taken_ms = await _measure(session, url, model, task, users, method, count)
                            found["requests_ms"][f"{model}, {users}, {method}"] = taken_ms
                for model, task in tasks.items():
                    found["cpu_ms"][model]["after"] = await _cpu_ms(server, session, url, model, task, count)
        rounds.append(found)
        tell(f"explanations: round {number + 1} of {num_rounds}")
    return rounds


async def _predict(session: aiohttp.ClientSession, url: str, model: str, task: ModelTask, number: int) -> None:
    body, headers = task.body(task.inputs[number % len(task.inputs)]), {"content-type": task.content_type}
    async with session.post(f"{url}/models/{model}", data=body, headers=headers) as response:
        await response.read()
        response.raise_for_status()


async def _cpu_ms(
    server: Process, session: aiohttp.ClientSession, url: str, model: str, task: ModelTask, count: int
) -> float:
    """Return the server's CPU milliseconds for a prediction, with the most users."""

    async def send(number: int) -> dict[str, int]:
        await _predict(session, url, model, task, number)
        return {}

    await closed_loop(send, USERS[-1], WARM_UP * USERS[-1])
    before_s = server.cpu_s()
    await closed_loop(send, USERS[-1], count)
    return 1e3 * (server.cpu_s() - before_s) / count


async def _measure(
    session: aiohttp.ClientSession, url: str, model: str, task: ModelTask, users: int, method: str, count: int
) -> dict[str, list[float]]:
    pauses = random.Random(0)

    async def send(number: int) -> dict[str, int]:
        started_s = time.perf_counter()
        await _predict(session, url, model, task, number)
        into.append(1e3 * (time.perf_counter() - started_s))
        if users == 1:
            await asyncio.sleep(pauses.uniform(0, MAX_PAUSE_S))
        return {}

    into: list[float] = []

    async def measure(taken_ms: list[float]) -> None:
        nonlocal into
        into = []
        await closed_loop(send, users, WARM_UP * users)  # the first requests after a pause find cold caches
        into = taken_ms
        await closed_loop(send, users, count // SLICES)

    alone_ms: list[float] = []
    during_ms: list[float] = []
    for _ in range(SLICES):
        await measure(alone_ms)
        async with _explaining(session, url, model, task, method):
            await measure(during_ms)
    return {"alone": alone_ms, "during": during_ms}


@asynccontextmanager
async def _explaining(
    session: aiohttp.ClientSession, url: str, model: str, task: ModelTask, method: str
) -> AsyncIterator[None]:
    """Request explanations one after another; enter when the first is being computed."""
    tensor = json_tensor(task.input_name, [max(task.inputs[:100], key=len)])  # long inputs take more work
    parameters = {"method": method, "n_samples": METHODS[method]}
    body = json.dumps({"inputs": [tensor], "parameters": parameters})

    async def explain_once() -> None:
        headers = {"x-request-timeout-ms": str(EXPLANATION_TIMEOUT_MS)}
        async with session.post(f"{url}/v2/models/{model}/explain", data=body, headers=headers) as response:
            await response.read()
            response.raise_for_status()

    async def explain() -> None:
        while True:
            await explain_once()

    async def waiting_rows() -> float:
        async with session.get(f"{url}/metrics") as response:
            lines = (await response.text()).splitlines()
        start = f'heed_low_priority_queue_rows{{model="{model}"'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(start))

    if method == "gradients":
        await explain_once()  # the first request opens the graph
    explaining = asyncio.create_task(explain())
    try:
        async with asyncio.timeout(STARTS_S):
            while method == "shap" and not await waiting_rows():
                pass
        if method == "gradients":  # no metric shows that its steps have begun
            await asyncio.sleep(HEAD_START_S)
        yield
        if explaining.done():
            explaining.result()
    finally:
        explaining.cancel()
        with suppress(asyncio.CancelledError):
            await explaining


def percentile(values: list[float], share: float) -> float:
    """Return the value that this fraction of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def times_alone(measured: dict[str, list[float]]) -> float:
    """Return the 99th percentile during an explanation, as a multiple of that without."""
    return percentile(measured["during"], 0.99) / percentile(measured["alone"], 0.99)


def explanation_bars(
    rounds: list[Round],
) -> list[tuple[str, str, list[float], str, float, bool]]:
    """Return each bar: name, bar in words, values of the rounds, their format, the bar, whether it is a minimum."""
    return [
        (
            f"p99 during an explanation, times p99 alone: {key}",
            f"at most {MAX_TIMES}",
            [times_alone(measured["requests_ms"][key]) for measured in rounds],
            "{:.2f}",
            MAX_TIMES,
            False,
        )
        for key in rounds[0]["requests_ms"]
    ]


def report_explanations(rounds: list[Round], spread: Callable[[list[float], str], str]) -> list[str]:
    """Format the figures as lines of Markdown; `spread` formats a median and its range."""
    slices = [measured["requests_ms"] for measured in rounds]
    costs = [measured["cpu_ms"] for measured in rounds]
    count = len(next(iter(slices[0].values()))["alone"])
    lines = [
        "",
        "### Predictions during an explanation",
        "",
        f"KernelSHAP of up to {METHODS['shap']} evaluations, or integrated gradients of {METHODS['gradients']} steps,"
        f" in the background; task API over HTTP, {count} requests a figure and round, in turns alone and during. The"
        f" lone user pauses for up to {1e3 * MAX_PAUSE_S:.0f} ms after each answer.",
        "",
        "| model, users, method | p50 ms alone | during | p99 ms alone | during | p99 during / alone |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for key in slices[0]:
        cells = [
            spread([percentile(measured[key][when], share) for measured in slices], "{:.1f}")
            for share in (0.5, 0.99)
            for when in ("alone", "during")
        ]
        cells.append(spread([times_alone(measured[key]) for measured in slices], "{:.2f}"))
        lines.append(f"| {key} | {' | '.join(cells)} |")
    lines += [
        "",
        f"What a prediction costs the server, {count} requests of {USERS[-1]} users: before the first explanation, when"
        " no graph that explains is open yet, and after all of them.",
        "",
        "| model | CPU ms a request before | after | after / before |",
        "| --- | --- | --- | --- |",
    ]
    for model in costs[0]:
        cells = [spread([measured[model][when] for measured in costs], "{:.2f}") for when in ("before", "after")]
        cells.append(spread([measured[model]["after"] / measured[model]["before"] for measured in costs], "{:.2f}"))
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return lines
