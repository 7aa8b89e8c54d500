"""`python -m load_tests.stalls`: how long one request delays the others, and how much memory attacks take.

Starts servers at default limits on loopback. Sends requests and faults that have blocked the server, and the largest
permitted requests, while another process requests /healthz every 10 ms on a connection of its own. Then attacks the
memory of a fresh server in many ways at once.

A round is repeated, and the page says so, if a request to /healthz waited for more than 50 ms only because a core was
not available even to a process of the highest real-time priority.

The exit status is 1 if a request to /healthz waited for more than 50 ms, if the memory rose by more than 512 MiB or
stayed more than 64 MiB above its idle level, or if a permitted request was not answered.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from load_tests.page import ROOT, MarkedPart, command_of, commit, machine
from load_tests.processes import LOAD_CORE, pin, steal_s
from load_tests.stalls.attacks import ATTACKS, measure_memory
from load_tests.stalls.cases import Case, cases
from load_tests.stalls.result import is_disturbed, page_of, problems_of
from load_tests.stalls.sending import Send, at_once
from load_tests.stalls.servers import Prober, Server, probing, serving, settle, wait_until_quiet
from load_tests.stalls.stores import make_many, make_store

MAX_REPEATS = 5  # of a round in which a core was not available


def main() -> int:
    """Measure, print the figures, write the page."""
    arguments = parser().parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    chosen = [case for case in cases() if any(part in case.name for part in arguments.cases)]
    try:
        part = MarkedPart.of(arguments.document, "stalls") if arguments.document else None
        if arguments.rounds < 1 or arguments.models < 1 or arguments.attack_s < 0 or arguments.rest_s < 0:
            raise ValueError("--rounds and --models must be positive, --attack-s and --rest-s at least 0")
        if not chosen and arguments.cases:
            raise ValueError(f"no case has {' or '.join(arguments.cases)} in its name")
    except ValueError as error:
        print(f"stalls: {error}", file=sys.stderr)
        return 2
    pin(LOAD_CORE)
    stores = {"usual": arguments.work / "store", "many models": arguments.work / "many"}
    stores["full disk"] = stores["usual"]
    make_store(stores["usual"], arguments.model_store)
    if any(case.where == "many models" for case in chosen):
        make_many(stores["many models"], arguments.models)
    try:
        result = measure(chosen, stores, arguments, console)
    except (RuntimeError, TimeoutError) as error:  # a server is not ready or does not answer
        print(f"stalls: {error}", file=sys.stderr)
        return 1
    (arguments.work / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    page = page_of(result)
    if part is not None:
        part.replace(page)
    console.print(page, soft_wrap=True, highlight=False, markup=False)
    return 1 if result["problems"] else 0


def parser() -> argparse.ArgumentParser:
    """Create the parser of the command line."""
    root = argparse.ArgumentParser(prog="python -m load_tests.stalls", description=__doc__)
    root.add_argument("--rounds", type=int, default=3, help="rounds of each case", metavar="N")
    root.add_argument(
        "--cases",
        nargs="*",
        default=[""],
        help="only cases whose names contain one of these; default: all",
        metavar="TEXT",
    )
    root.add_argument(
        "--models", type=int, default=1000, help="number of models of the server whose metrics are scraped", metavar="N"
    )
    root.add_argument(
        "--attacks",
        nargs="*",
        choices=list(ATTACKS),
        default=list(ATTACKS),
        help="attacks to run together; default: all",
    )
    root.add_argument(
        "--attack-s", type=float, default=20.0, help="duration of the attacks; 0: none", metavar="SECONDS"
    )
    root.add_argument(
        "--rest-s",
        type=float,
        default=60.0,
        help="wait after the attacks before the memory is read again",
        metavar="SECONDS",
    )
    root.add_argument(
        "--model-store",
        type=Path,
        default=ROOT / "model_store",
        help="store whose trained models are copied",
        metavar="FOLDER",
    )
    root.add_argument(
        "--work",
        type=Path,
        default=ROOT / "build/stalls",
        help="folder for the stores and result.json",
        metavar="FOLDER",
    )
    root.add_argument("--document", type=Path, help="page whose part `stalls` is written", metavar="FILE")
    return root


def measure(
    chosen: list[Case], stores: dict[str, Path], arguments: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """Measure all rounds of all cases, and the attacks.

    Raises:
        RuntimeError: a server no longer answers.
        TimeoutError: a server does not become ready.
    """
    begun_s, stolen_s = time.perf_counter(), steal_s()
    rows: dict[str, dict[str, Any]] = {
        case.name: {"name": case.name, "permitted": case.permitted, "rounds": [], "repeated": []} for case in chosen
    }
    done, total, watched = 0, arguments.rounds * len(chosen), True
    for where in dict.fromkeys(case.where for case in chosen):
        console.print(f"starting a server: {where}")
        with serving(stores[where], full_disk=where == "full disk") as server, probing(server) as prober:
            watched &= prober.watches_cores
            for case in [case for case in chosen if case.where == where]:
                for _ in range(arguments.rounds):
                    repeated, window = measure_undisturbed(case, server, prober)
                    rows[case.name]["repeated"] += repeated
                    rows[case.name]["rounds"].append(window)
                    done += 1
                    left_s = (time.perf_counter() - begun_s) / done * (total - done)
                    console.print(
                        f"{done} of {total}: {case.name}: {window['answer']}, others waited"
                        f" {window['p100_ms']:.1f} ms; about {left_s:.0f} s left",
                        markup=False,
                    )
    memory = None
    if arguments.attacks and arguments.attack_s:
        console.print(f"attacks at once for {arguments.attack_s:g} s, then {arguments.rest_s:g} s of rest")
        with serving(stores["usual"]) as server:
            memory = measure_memory(server, arguments.attacks, arguments.attack_s, arguments.rest_s)
    result: dict[str, Any] = {
        "command": command_of("load_tests.stalls"),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "num_rounds": arguments.rounds,
        "cases": list(rows.values()),
        "watched": watched,
        "memory": memory,
        "steal_s": steal_s() - stolen_s,
        "wall_s": time.perf_counter() - begun_s,
    }
    return result | {"problems": problems_of(result)}


def measure_undisturbed(case: Case, server: Server, prober: Prober) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure one round; repeat it where others waited too long only because a core was not available.

    Returns:
        The rounds that do not count, at most MAX_REPEATS, and the one that does.
    """
    repeated: list[dict[str, Any]] = []
    window = measure_case(case, server, prober)
    while is_disturbed(window) and len(repeated) < MAX_REPEATS:
        repeated.append(window)
        window = measure_case(case, server, prober)
    return repeated, window


def measure_case(case: Case, server: Server, prober: Prober) -> dict[str, Any]:
    """Measure one round: the answers, and how long others waited."""
    send = in_background(case.prepare())
    if case.warm_up is not None:
        case.warm_up()(server)
    wait_until_quiet(prober)
    begun_s = time.perf_counter()
    answer = send(server)
    seconds = time.perf_counter() - begun_s
    settle()
    return {"answer": answer, "seconds": seconds} | prober.window()


def in_background(send: Send) -> Callable[[Server], str]:
    """Return a sender of a request in a thread that lets the prober go first."""
    return at_once(send, 1)


if __name__ == "__main__":
    sys.exit(main())
