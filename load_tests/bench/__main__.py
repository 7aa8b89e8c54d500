"""`python -m load_tests.bench`: throughput, latency and cost of the server beside their limits.

The server has one core, the load the other. Each round measures, one after another, so that a machine whose speed
drifts treats all alike: the engine alone in loops (the limit), the server over gRPC and HTTP at each concurrency, a
model that does nothing, and echo servers, one bare and one with the service's gRPC settings. Ratios are taken within a
round; the report gives their medians.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from load_tests.bench.explanation import measure_explanations
from load_tests.bench.report import report
from load_tests.bench.rounds import CONCURRENCIES, measure, prepare_store
from load_tests.bench.translation import measure_translation
from load_tests.page import MarkedPart
from load_tests.processes import LOAD_CORE, pin

ROOT = Path(__file__).parents[2]
# Throughput is measured while all users are active; with fewer requests nothing is answered in that time.
MIN_COUNT = 2 * max(CONCURRENCIES)


def main(given: Sequence[str] | None = None) -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds of all measurements")
    parser.add_argument(
        "--requests", type=int, default=872, help="requests to each model in one measurement", metavar="N"
    )
    parser.add_argument(
        "--sentences", type=int, default=512, help="sentences in one measurement of translation", metavar="N"
    )
    parser.add_argument(
        "--predictions", type=int, default=300, help="predictions in one measurement beside explanations", metavar="N"
    )
    parser.add_argument(
        "--document", type=Path, help="page whose part `bench` is replaced by the report", metavar="FILE"
    )
    arguments = parser.parse_args(given)
    for name in ("requests", "sentences"):
        if getattr(arguments, name) < MIN_COUNT:
            parser.error(f"--{name} must be at least {MIN_COUNT}, twice the most users, not {getattr(arguments, name)}")
    try:
        part = MarkedPart.of(arguments.document, "bench") if arguments.document else None
    except ValueError as error:
        parser.error(str(error))
    console = Console(width=None if sys.stdout.isatty() else 140)
    prepare_store(console)
    pin(LOAD_CORE)
    result = asyncio.run(measure(arguments.rounds, arguments.requests, console))
    result["translations"] = asyncio.run(
        measure_translation(ROOT / "model_store", arguments.rounds, arguments.sentences, console.print)
    )
    result["explanations"] = asyncio.run(
        measure_explanations(ROOT / "model_store", arguments.rounds, arguments.predictions, console.print)
    )
    target = ROOT / "load_tests" / "results" / f"bench-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    target.write_text(json.dumps(result, indent=2) + "\n")
    page = report(result)
    console.print(page, markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {target.relative_to(ROOT)}")
    if part:
        part.replace(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
