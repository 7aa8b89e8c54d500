"""The report of the benchmark in Markdown, and the bars that its figures must meet."""

import statistics
from datetime import UTC, datetime
from typing import Any

from load_tests.bench.explanation import explanation_bars, report_explanations
from load_tests.bench.rounds import CONCURRENCIES, ECHOES, MODELS, PADDED
from load_tests.bench.translation import report_translation


def spread(values: list[float], form: str = "{:.1f}") -> str:
    """Format a median and its range."""
    middle, low, high = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def report(result: dict[str, Any]) -> str:
    """Write the figures as Markdown: medians over the rounds, lowest and highest in brackets."""
    rounds = result["rounds"]
    lines = [
        f"`{result['command']}` at commit {result['commit']}, {datetime.now(UTC):%Y-%m-%d}, {result['machine']};"
        " server and engine on one core, load on the other."
        f" {len(rounds)} rounds of {result['requests']} requests a figure (a quarter of them at 1 and 16 users),"
        f" sentences of {result['sentences']}"
        f" ({result['tokens_per_text']:.1f} tokens on average), closed loop."
        " Median over the rounds, lowest and highest in brackets."
        f" Stolen by the host: {sum(r['steal_s'] for r in rounds):.1f} CPU s in"
        f" {sum(r['wall_s'] for r in rounds):.0f} s.",
        "",
        "### Bars",
        "",
        "| what | bar | measured | met |",
        "| --- | --- | --- | --- |",
    ]
    for name, bar, values, form, met in bars(result):
        lines.append(f"| {name} | {bar} | {spread(values, form)} | {'yes' if met else '**no**'} |")
    lines += [
        *report_limit(rounds),
        *report_served(rounds),
        *report_overhead(rounds),
        "",
        "CPU seconds per 1,000 requests. Added latency at one user (mean request less mean engine call, one by one):"
        f" {added_latency_ms(result, 'grpc'):.2f} ms over gRPC, {added_latency_ms(result, 'http'):.2f} ms over HTTP"
        " (float32).",
        f"Memory of the server with all models of the run: {result['memory_mib']['now']:.0f} MiB"
        f" (peak {result['memory_mib']['peak']:.0f}).",
        *report_translation(result["translation"], spread),
        *report_explanations(result["explanations"], spread),
    ]
    return "\n".join(lines) + "\n"


def report_limit(rounds: list[dict[str, Any]]) -> list[str]:
    """Write the table of the engine alone as lines of Markdown."""
    lines = [
        "",
        "### The engine alone (the limit)",
        "",
        "| loop, rows/s | float32, padding computed | float32 | int8 |",
        "| --- | --- | --- | --- |",
    ]
    for loop in [key.split(": ")[1] for key in rounds[0]["limit"] if key.startswith("minilm:")]:
        cells = [spread([r["limit"][f"{model}: {loop}"]["rows_per_s"] for r in rounds]) for model in (PADDED, *MODELS)]
        lines.append(f"| {loop} | {' | '.join(cells)} |")
    return lines


def report_served(rounds: list[dict[str, Any]]) -> list[str]:
    """Write the table of the server under load as lines of Markdown."""
    lines = [
        "",
        "### Served",
        "",
        "| model, protocol, users | requests/s | share of the limit | p50 ms | p99 ms | rows a batch | padding"
        " | server CPU s per 1,000 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key in rounds[0]["served"]:
        served = [r["served"][key] for r in rounds]
        model = key.split(":")[0]
        shares = [r["served"][key]["requests_per_s"] / limit(r, model) for r in rounds]
        lines.append(
            f"| {key} | {spread([s['requests_per_s'] for s in served])} | {statistics.median(shares):.0%}"
            f" | {statistics.median(s['p50_ms'] for s in served):.1f}"
            f" | {statistics.median(s['p99_ms'] for s in served):.1f}"
            f" | {statistics.median(s['mean_batch_rows'] for s in served):.1f}"
            f" | {statistics.median(s['padded_share'] for s in served):.1%}"
            f" | {spread([s['cpu_s_per_1000'] for s in served], '{:.2f}')} |"
        )
    return lines


def report_overhead(rounds: list[dict[str, Any]]) -> list[str]:
    """Write the table of a model that does nothing, beside the echo servers, as lines of Markdown."""
    lines = [
        "",
        "### The server's own cost (a model that does nothing)",
        "",
        "| users | bare grpc.aio echo | echo with the service's settings | gRPC | gRPC / bare echo"
        " | gRPC / echo with the service's settings | HTTP |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for users in CONCURRENCIES:
        names = (*ECHOES, "grpc", "http")
        *spent, http = (spread([r["overhead"][f"{name}, {users}"] for r in rounds], "{:.3f}") for name in names)
        ratios = [spread(echo_ratios(rounds, echo, users), "{:.2f}") for echo in ECHOES]
        lines.append(f"| {' | '.join([str(users), *spent, *ratios, http])} |")
    return lines


def echo_ratios(rounds: list[dict[str, Any]], echo: str, users: int) -> list[float]:
    """Return the CPU time of gRPC without a model as a multiple of an echo server's, in each round."""
    return [r["overhead"][f"grpc, {users}"] / r["overhead"][f"{echo}, {users}"] for r in rounds]


def limit(measured: dict[str, Any], model: str) -> float:
    """Return the rows per second of the best loop at a model's precision in one round."""
    same = (model, PADDED) if MODELS[model] == "float32" else (model,)
    rates: list[float] = [
        values["rows_per_s"] for key, values in measured["limit"].items() if key.split(":")[0] in same
    ]
    return max(rates)


def added_latency_ms(result: dict[str, Any], protocol: str) -> float:
    """Return the mean latency at one user minus the engine's time for one row, as the median over the rounds."""
    added: list[float] = []
    for measured in result["rounds"]:
        alone_ms = 1e3 / measured["limit"]["minilm: one by one"]["rows_per_s"]
        mean_ms = 1e3 / measured["served"][f"minilm: {protocol}, 1"]["requests_per_s"]
        added.append(mean_ms - alone_ms)
    return statistics.median(added)


def bars(result: dict[str, Any]) -> list[tuple[str, str, list[float], str, bool]]:
    """Judge each bar: its name, the bar in words, the values of the rounds, their format, whether the median passes."""
    rounds = result["rounds"]
    middle = statistics.median

    def shares(model: str) -> list[float]:
        return [r["served"][f"{model}: grpc, 64"]["requests_per_s"] / limit(r, model) for r in rounds]

    gain = [
        r["served"]["minilm-int8: grpc, 64"]["requests_per_s"] / r["limit"][f"{PADDED}: list order, 32"]["rows_per_s"]
        for r in rounds
    ]
    found = [
        ("float32 over gRPC at 64, share of the limit", "at least 85 %", shares("minilm"), "{:.1%}", 0.85, True),
        ("int8 over gRPC at 64, share of the limit", "at least 75 %", shares("minilm-int8"), "{:.1%}", 0.75, True),
        (
            "int8 over gRPC at 64, times the float32 list-order loop of 32 with padding",
            "at least 3",
            gain,
            "{:.2f}",
            3.0,
            True,
        ),
        ("start to ready", "below 2 s", result["start_to_ready_s"], "{:.2f}", 2.0, False),
        ("idle CPU", "below 1 % of a core", [result["idle_cpu_share"]], "{:.2%}", 0.01, False),
    ]
    for echo, words in (("echo", "a bare echo's"), ("tuned echo", "that of an echo with the service's settings")):
        for users in CONCURRENCIES:
            name, values = f"CPU of gRPC without a model at {users}, times {words}", echo_ratios(rounds, echo, users)
            found.append((name, "at most 1.6", values, "{:.2f}", 1.6, False))
    found += explanation_bars(result["explanations"])
    return [
        (name, bar, values, form, middle(values) >= edge if at_least else middle(values) <= edge)
        for name, bar, values, form, edge, at_least in found
    ]
