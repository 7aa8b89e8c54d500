"""`python -m load_tests.bench.trained_runs runs/sweep-*`: what trained runs cost when they are served, side by side.

Each run becomes a model of one store, and all are served by one server on one core. In each round every model answers
one user, then many; the medians of the rounds go to docs/serving.json, for `python -m export report`.
"""

import argparse
import asyncio
import hashlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from load_tests.bench.rounds import forget_unless_made_by
from load_tests.drivers import drive_grpc
from load_tests.material import load_sentences
from load_tests.page import command_of, commit, machine
from load_tests.processes import DRAIN_AT_ONCE, LOAD_CORE, Process, free_port, pin, steal_s

ROOT = Path(__file__).parents[2]
STORE = ROOT / "build" / "serving_store"
MANY_USERS = 64


def main() -> int:
    """Convert, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.bench.trained_runs", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, help="folders of finished runs of text classification", metavar="FOLDER"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds of all measurements")
    parser.add_argument(
        "--requests", type=int, default=872, help="requests of many users to each model in a round", metavar="N"
    )
    parser.add_argument(
        "--document",
        type=Path,
        default=ROOT / "docs" / "serving.json",
        metavar="FILE",
        help="JSON file that is written",
    )
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    forget_unless_made_by(STORE, commit())
    for number, run_dir in enumerate(arguments.runs):
        console.print(f"converting {run_dir.name} ({number + 1} of {len(arguments.runs)})")
        convert(run_dir, STORE)
    pin(LOAD_CORE)
    names = [run_dir.name for run_dir in arguments.runs]
    result = asyncio.run(measure(STORE, names, arguments.rounds, arguments.requests, console))
    arguments.document.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"written: {arguments.document}")
    return 0


def convert(run_dir: Path, store: Path) -> None:
    """Convert one run into the store, unless this very run is there.

    Raises:
        CalledProcessError: the conversion was refused.
    """
    files = sorted(run_dir.glob("model.safetensors*"))
    weights = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    forget_unless_made_by(store / run_dir.name, weights)
    if (store / run_dir.name / "1").exists():
        return
    command = [sys.executable, "-m", "export", "convert", run_dir.name, "--run-dir", str(run_dir)]
    subprocess.run([*command, "--model-store", str(store)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


async def measure(
    store: Path, names: list[str], num_rounds: int, num_requests: int, console: Console
) -> dict[str, Any]:
    """Measure all rounds, and print a line of progress after each."""
    texts = load_sentences().texts
    http, grpc = free_port(), free_port()
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    begun_s, stolen_s = time.perf_counter(), steal_s()
    options = ("--model-store", str(store), "--http-port", str(http), "--grpc-port", str(grpc))
    with Process("service", *options, *DRAIN_AT_ONCE) as server:
        server.wait_until_ready(f"http://127.0.0.1:{http}/readyz")
        server.wait_until_idle()
        for number in range(num_rounds):
            for name in names:
                measured[name].append(await measure_model(server, grpc, name, texts, num_requests))
            passed_s = time.perf_counter() - begun_s
            left_s = passed_s / (number + 1) * (num_rounds - number - 1)
            console.print(f"round {number + 1} of {num_rounds}: {passed_s:.0f} s, about {left_s:.0f} s left")
    return {
        "command": command_of("load_tests.bench.trained_runs"),
        "commit": commit(),
        "machine": machine(),
        "rounds": num_rounds,
        "requests": num_requests,
        "users": MANY_USERS,
        "steal_s": steal_s() - stolen_s,
        "wall_s": time.perf_counter() - begun_s,
        "models": {
            name: {figure: statistics.median(one[figure] for one in rounds) for figure in rounds[0]}
            for name, rounds in measured.items()
        },
    }


async def measure_model(server: Process, port: int, name: str, texts: list[str], num_requests: int) -> dict[str, float]:
    """Measure latency at one user, and throughput and cost at many."""
    alone = (await drive_grpc(port, name, texts, 1, num_requests // 4)).summary()
    cpu_s = server.cpu_s()
    together = (await drive_grpc(port, name, texts, MANY_USERS, num_requests)).summary()
    return {
        "p50_ms": alone["p50_ms"],
        "p99_ms": alone["p99_ms"],
        "requests_per_s": together["requests_per_s"],
        "cpu_s_per_1000": 1e3 * (server.cpu_s() - cpu_s) / num_requests,
    }


if __name__ == "__main__":
    sys.exit(main())
