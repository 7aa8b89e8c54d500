"""Translation in the benchmark: tokens per second over gRPC, beside CTranslate2 with the same weights.

The server translates on one core what users on the other ask for, one sentence a request. CTranslate2 is measured
twice: behind a server of its own (`load_tests.bench.ctranslate2_server`), asked by the same users, and in a loop in
process (`load_tests.bench.ctranslate2_loops`), which is the limit.
"""

import asyncio
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc

from load_tests.drivers import START_S, closed_loop
from load_tests.material import load_translations
from load_tests.processes import DRAIN_AT_ONCE, Process, free_port
from proto import heed_pb2, heed_pb2_grpc

PRECISIONS = ("float32", "int8")
MODELS = {"float32": "translation-en-de", "int8": "translation-en-de-int8"}  # in the store
BEAMS = (1, 4)
CONCURRENCIES = (1, 16, 64)
MAX_BATCH_SIZE = 64  # of CTranslate2's server; Heed's default for a running batch
MAX_NEW_TOKENS = 200  # longer than every translation


def sentences_of(texts: list[str], concurrency: int, count: int) -> list[str]:
    """Return the sentences of one measurement: fewer where they are translated one after another."""
    return [texts[number % len(texts)] for number in range(count if concurrency > 1 else count // 4)]


async def measure_translation(
    store: Path,
    num_rounds: int,
    count: int,
    tell: Callable[[str], None],
    models: Mapping[str, str] = MODELS,
) -> dict[str, Any]:
    """Measure all rounds, each of Heed and CTranslate2 one after another.

    Args:
        store: with a model of each precision.
        num_rounds: how often.
        count: sentences of one measurement.
        tell: is told of each round's end.
        models: their names, by precision.
    """
    english = load_translations()
    http, port, other_port = free_port(), free_port(), free_port()
    server_arguments = ["--model-store", str(store), "--http-port", str(http), "--grpc-port", str(port)]
    folder = store / models["float32"] / "1"
    rounds = []
    with (
        Process("service", *DRAIN_AT_ONCE, *server_arguments) as server,
        Process("load_tests.bench.ctranslate2_server", str(folder), str(other_port), ",".join(models.values())),
        Process("load_tests.bench.ctranslate2_loops", str(folder), str(count), pipes=True) as loops,
    ):
        server.wait_until_ready(f"http://127.0.0.1:{http}/readyz")
        assert loops.popen.stdin and loops.popen.stdout
        await asyncio.to_thread(loops.popen.stdout.readline)
        for number in range(num_rounds):
            loops.popen.stdin.write("go\n")
            loops.popen.stdin.flush()
            alone = json.loads(await asyncio.to_thread(loops.popen.stdout.readline))
            served: dict[str, dict[str, Any]] = {"heed": {}, "ctranslate2": {}}
            for precision, model in models.items():
                for beams in BEAMS:
                    for users in CONCURRENCIES:
                        texts = sentences_of(english.texts, users, count)
                        key = f"{precision}: beam {beams}, {users}"
                        served["heed"][key] = await drive(port, model, texts, beams, users)
                        served["ctranslate2"][key] = await drive(other_port, model, texts, beams, users)
            rounds.append({"ctranslate2_loop_tokens_per_s": alone} | served)
            tell(f"translation: round {number + 1} of {num_rounds}")
    return {"sentences": english.source, "count": count, "rounds": rounds}


async def drive(port: int, model: str, texts: list[str], beams: int, users: int) -> dict[str, float]:
    """Translate each text once, as a request of its own; tokens per second, and percentiles of the latency."""
    tokens: list[int] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        translate = heed_pb2_grpc.HeedStub(channel).Translate

        async def send(number: int) -> dict[str, int]:
            request = heed_pb2.TranslateRequest(model=model, text=texts[number], num_beams=beams)
            answer = await translate(request)
            tokens.append(answer.num_tokens)
            if not answer.HasField("receipt"):
                return {}
            return {name: getattr(answer.receipt, name) for name in ("batch_size", "padded_tokens", "batch_tokens")}

        await asyncio.wait_for(channel.channel_ready(), START_S)
        await send(0)
        tokens.clear()
        load = await closed_loop(send, users, len(texts))
    summary = load.summary()
    mean_tokens = statistics.mean(tokens)
    return {"tokens_per_s": summary["requests_per_s"] * mean_tokens, "mean_tokens": mean_tokens} | {
        name: summary[name] for name in ("requests_per_s", "p50_ms", "p99_ms", "mean_batch_rows") if name in summary
    }


def report_translation(result: dict[str, Any], spread: Callable[[list[float], str], str]) -> list[str]:
    """Format the figures as lines of Markdown; `spread` formats a median and its range."""
    lines = [
        "",
        "### Translation",
        "",
        f"Sentences of {result['sentences']}, {result['count']} a figure (a quarter at one user), one a request, over"
        " gRPC; tokens of the translations. CTranslate2 has the same weights: behind a server that batches what waits,"
        " and in process, in batches of as many sentences as there are users, all known beforehand and sorted by"
        " length.",
        "",
        "| precision, search, users | Heed tokens/s | CTranslate2 served | Heed / that | CTranslate2 in process"
        " | Heed / that | Heed rows a step | Heed p50, p99 ms | CTranslate2 served p50, p99 ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rounds = result["rounds"]
    for key in rounds[0]["heed"]:

        def tokens(who: str, key: str = key) -> list[float]:
            return [each[who][key]["tokens_per_s"] for each in rounds]

        def middle(who: str, name: str, key: str = key) -> float:
            return float(statistics.median(each[who][key][name] for each in rounds))

        alone = [each["ctranslate2_loop_tokens_per_s"][key] for each in rounds]
        cells = [spread(tokens("heed"), "{:.0f}")]
        for other in (tokens("ctranslate2"), alone):
            ratios = [mine / theirs for mine, theirs in zip(tokens("heed"), other, strict=True)]
            cells += [spread(other, "{:.0f}"), spread(ratios, "{:.2f}")]
        cells.append(f"{middle('heed', 'mean_batch_rows'):.1f}")
        cells += [f"{middle(who, 'p50_ms'):.1f}, {middle(who, 'p99_ms'):.1f}" for who in ("heed", "ctranslate2")]
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return lines
