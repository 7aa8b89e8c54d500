"""`python -m load_tests.soak`: a million mixed requests while servers are restarted and files overwritten.

Starts two servers on a store of its own. Users send requests of every task over every API, cancel some, set deadlines
that cannot be met and send bad input. Meanwhile servers are restarted one after the other, files of their models are
overwritten and truncated, and their logs are not read. Every answer is compared with the one that the same model gave
to a single request before the soak, and answers of bare graphs with numpy.

The exit status is 1 if an answer was wrong, lost or an unexpected failure, and 130 after an interruption. `--state`
keeps the progress, and the same command continues from it.
"""

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_tests.model_tasks import TASKS
from load_tests.page import ROOT, MarkedPart
from load_tests.soak.catalogue import Catalogue, Item, Model, items_of
from load_tests.soak.client import Client, ask, judge
from load_tests.soak.faults import FAULTS, FaultPlan
from load_tests.soak.result import page_of
from load_tests.soak.servers import OverwrittenFiles, ServerSlot, make_store
from load_tests.soak.tally import Tally
from load_tests.wire import FLOAT32_TOLERANCE, Answer

SAVE_EVERY = 500  # requests
TOLD_EVERY_S = 10.0
MEMORY_SAMPLES = 200
INTERRUPTED = 130


def main() -> int:
    """Run the soak, print the figures, write the page."""
    arguments = parser().parse_args()
    try:
        part = MarkedPart.of(arguments.document, "soak") if arguments.document else None
        if arguments.fresh:
            arguments.state.unlink(missing_ok=True)
        tally = Tally.read(arguments.state, arguments.requests, arguments.seed)
    except ValueError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    if arguments.requests < 1 or arguments.users < 1 or arguments.inputs < 1 or arguments.fault_every < 2:
        print("soak: --requests, --users and --inputs must be positive, --fault-every at least 2", file=sys.stderr)
        return 2
    try:
        asyncio.run(soak(arguments, tally))
    except (
        RuntimeError,
        TimeoutError,
        ValueError,
    ) as error:  # no server, or no model of a task
        tally.write(arguments.state)
        print(f"soak: {error}", file=sys.stderr)
        return 1
    print(json.dumps(tally.summary()), flush=True)
    for example in tally.examples:
        print(example)
    if tally.done < tally.total:
        print(f"interrupted after {tally.done:,} of {tally.total:,} requests; the same command goes on", flush=True)
        return INTERRUPTED
    if part is not None:
        part.replace(page_of(tally, arguments))
    return 1 if tally.failures else 0


def parser() -> argparse.ArgumentParser:
    """Create the parser of the command line."""
    root = argparse.ArgumentParser(prog="python -m load_tests.soak", description=__doc__)
    root.add_argument(
        "--requests", type=int, default=1_000_000, help="number of requests in all sessions together", metavar="N"
    )
    root.add_argument("--users", type=int, default=24, help="number of concurrent requests", metavar="N")
    root.add_argument(
        "--inputs", type=int, default=64, help="number of different texts or images for each model", metavar="N"
    )
    root.add_argument("--seed", type=int, default=1, help="seed of the random requests", metavar="N")
    root.add_argument("--fault-every", type=int, default=5_000, help="requests between two faults", metavar="N")
    root.add_argument(
        "--faults", nargs="*", choices=list(FAULTS), default=list(FAULTS), help="faults to make; default: all"
    )
    root.add_argument(
        "--model-store",
        type=Path,
        default=ROOT / "model_store",
        help="store whose trained models are copied",
        metavar="FOLDER",
    )
    root.add_argument(
        "--work", type=Path, default=ROOT / "build/soak", help="folder for the store of the soak", metavar="FOLDER"
    )
    root.add_argument(
        "--state", type=Path, default=ROOT / "build/soak/state.json", help="file with the progress", metavar="FILE"
    )
    root.add_argument("--fresh", action="store_true", help="start again from the first request")
    root.add_argument("--document", type=Path, help="page whose part `soak` is written at the end", metavar="FILE")
    return root


async def soak(arguments: argparse.Namespace, tally: Tally) -> None:
    """Run one session, to the end or until it is interrupted.

    Raises:
        RuntimeError: a server does not become ready.
        TimeoutError: a server does not end after SIGTERM.
    """
    store = arguments.work / "store"
    await asyncio.to_thread(make_store, store, arguments.model_store)
    slots = [ServerSlot(store), ServerSlot(store)]
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    tally.sessions += 1
    try:
        await asyncio.gather(*(slot.start() for slot in slots))
        models = models_of(store)
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(slot)) for slot in slots]
            print("asking every reference alone", flush=True)
            catalogue = Catalogue(models, await references_of(clients[0], models, arguments.inputs), arguments.seed)
            plan = FaultPlan(arguments.faults, slots, OverwrittenFiles(store), tally)
            await Session(catalogue, clients, plan, tally, arguments, stopping).run()
    finally:
        await asyncio.gather(*(slot.stop() for slot in slots))
        tally.write(arguments.state)


def models_of(store: Path) -> list[Model]:
    """Return the trained models of the store, with their tasks and the tolerance of their answers within a batch."""
    models = []
    for path in sorted(store.glob("*/1/manifest.json")):
        manifest = json.loads(path.read_text())
        sensitivity = manifest.get("batch_sensitivity")
        tolerance = sensitivity["worst"] if sensitivity else FLOAT32_TOLERANCE
        models.append(Model(manifest["name"], TASKS[manifest["task"]], tolerance, bool(sensitivity)))
    return models


async def references_of(client: Client, models: list[Model], count: int) -> dict[Item, Answer]:
    """Ask for the answer to every input, one at a time.

    Raises:
        RuntimeError: the server refuses one.
    """
    references = {}
    for item in items_of(models, count):
        request = item.reference_request()
        reply = await client.send(request)
        outcome, why = judge(request, reply)
        if outcome != "right" or request.read is None:
            raise RuntimeError(f"the reference of {item.model.name} is not answered: {why}")
        references[item] = request.read(reply.content)
    return references


@dataclass
class Session:
    """The users, and the faults around them."""

    catalogue: Catalogue
    clients: list[Client]
    plan: FaultPlan
    tally: Tally
    arguments: argparse.Namespace
    stopping: asyncio.Event

    async def run(self) -> None:
        """Send the remaining requests."""
        self._begun_s, self._done_before, self._wall_before_s = time.monotonic(), self.tally.done, self.tally.wall_s
        numbers = iter(range(self.tally.done, self.tally.total))
        faults = asyncio.create_task(self.plan.run(self.arguments.fault_every))
        telling = asyncio.create_task(self._tell())
        users = [asyncio.create_task(self._user(numbers)) for _ in range(self.arguments.users)]
        try:
            # The session ends when all users have finished, or when a fault cannot be made.
            working = asyncio.gather(*users)
            both: list[asyncio.Future[Any]] = [working, faults]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if faults.done():
                self.stopping.set()
                await working
                faults.result()
            await working
        finally:
            for task in (faults, telling):
                task.cancel()
            await asyncio.gather(faults, telling, return_exceptions=True)
            await self.plan.end()
            self._clock()

    async def _user(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            if self.stopping.is_set():
                return
            request = self.catalogue.request(number)
            outcome, why = await ask(self.clients, number, request, self.tally)
            self.tally.count(request.kind, outcome, why)
            self.plan.advance(self.tally.done)
            if self.tally.done % max(1, self.tally.total // MEMORY_SAMPLES) == 0:
                self.tally.memory_mib += [
                    (self.tally.done, round(client.slot.memory_mib(), 1)) for client in self.clients
                ]
            if self.tally.done % SAVE_EVERY == 0:
                self._clock()
                self.tally.write(self.arguments.state)

    def _clock(self) -> None:
        self.tally.wall_s = self._wall_before_s + time.monotonic() - self._begun_s

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(TOLD_EVERY_S)
            done, seconds = self.tally.done - self._done_before, time.monotonic() - self._begun_s
            left_s = (self.tally.total - self.tally.done) * seconds / max(1, done)
            left = f"{int(left_s // 3600)} h {int(left_s % 3600 // 60)} min left"
            figures = ", ".join(f"{number:,} {name}" for name, number in self.tally.summary().items())
            print(f"{self.tally.done:,} of {self.tally.total:,}, {figures}; {done / seconds:.0f}/s, {left}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
