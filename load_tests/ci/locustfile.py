"""The gate run of slo.toml: a warm-up, arrivals at a constant rate, then ever more users; all models mixed.

    locust -f load_tests/ci/locustfile.py --headless --slo load_tests/slo.toml --host http://127.0.0.1:8080 \
        --grpc-host 127.0.0.1:8081 --report report.json

`python -m load_tests.ci` runs it, judges the report and draws it.
"""

import json
import logging
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import grpc.experimental.gevent as grpc_gevent
from locust import FastHttpUser, LoadTestShape, User, constant, events, task

from load_tests.ci.arrivals import send_on_schedule
from load_tests.measurement import NOT_STARTED, Window, figures, gate_report
from load_tests.processes import CpuReading
from load_tests.slo import Gate, chosen, read_slo
from load_tests.targets import TARGETS, TIMEOUT_S, Target
from load_tests.user_load.users import GrpcModelUser, HttpModelUser, Run, Sample

TICK_S = 1.0  # Locust calls a shape about once a second
AT_ONCE = 100  # users that start or stop in a second; Locust warns above that
NUM_CHANNELS = 4  # of the arrivals over gRPC

grpc_gevent.init_gevent()


class Phase(NamedTuple):
    """A part of the run."""

    name: str
    kind: str
    users: int | None
    settle_s: float
    seconds: float


def phases_of(gate: Gate) -> Iterator[Phase]:
    """Yield the phases in order, with a pause between kinds of users: Locust exchanges none while others run."""
    pause = Phase("pause", "pause", 0, 0.0, 0.0)
    warm_up_users = min(gate.steps.judged_users, max(gate.steps.users))
    yield Phase("warm-up", "warm-up", warm_up_users, 0.0, gate.warm_up_s)
    yield pause
    yield Phase(f"{gate.arrivals.rate_per_s:g} requests/s", "arrivals", None, 0.0, gate.arrivals.seconds)
    yield pause
    for users in gate.steps.users:
        yield Phase(f"{users} users", "users", users, gate.steps.settle_s, gate.steps.seconds)


class GateRun(Run):
    """A run that goes through the phases, and measures in each."""

    def __init__(self, gate: Gate, target: Target, server_pid: int | None) -> None:
        super().__init__({name: limits.task for name, limits in gate.models.items()}, target)
        self.gate, self.windows = gate, list[Window]()
        self.arrivals_are_over = False
        self._server_pid = server_pid
        self._phases = phases_of(gate)
        self._phase: Phase | None = None
        self._entered_s = 0.0
        self._begin: CpuReading | None = None

    def advance(self) -> Phase | None:
        """Return the current phase, None when the run is over; called about once a second."""
        passed_s = perf_counter() - self._entered_s + TICK_S / 10  # ticks are not exact
        if self._phase is None or self._is_over(self._phase, passed_s):
            self._close()
            self._phase = next(self._phases, None)
            self._entered_s, self._begin, passed_s = perf_counter(), None, 0.0
            self.phase = self._phase.name if self._phase else "after"
        phase = self._phase
        if phase is not None and phase.kind != "pause" and self._begin is None and passed_s >= phase.settle_s:
            self._begin = CpuReading.now(self._server_pid)
        return phase

    def _is_over(self, phase: Phase, passed_s: float) -> bool:
        if phase.kind == "arrivals":
            return self.arrivals_are_over
        return passed_s >= phase.settle_s + phase.seconds

    def _close(self) -> None:
        if self._phase is None or self._begin is None:
            return
        window = Window(
            self._phase.name, self._phase.kind, self._phase.users, self._begin, CpuReading.now(self._server_pid)
        )
        self.windows.append(window)
        seen = figures(window.of(self.records), window.seconds)
        if seen["answered"]:
            print(
                f"{self._phase.name}: {seen['requests_per_s']:.0f} answers/s, p95 {seen['p95_ms']:.0f} ms,"
                f" p99 {seen['p99_ms']:.0f} ms, {seen['failures']} failed",
                flush=True,
            )


class Arrivals(FastHttpUser):
    """Starts requests on schedule, HTTP and gRPC by turns."""

    wait_time = constant(TICK_S)
    network_timeout = connection_timeout = TIMEOUT_S
    concurrency = 10_000  # the requests in flight limit the connections

    def on_start(self) -> None:
        """Connect over gRPC; HTTP connects as it needs."""
        run: GateRun = self.environment.heed_run
        address = self.environment.parsed_options.grpc_host
        self._channels = [run.connect(address) for _ in range(NUM_CHANNELS)]

    def on_stop(self) -> None:
        """Close the connections."""
        for channel, _ in self._channels:
            channel.close()

    @task
    def arrive(self) -> None:
        """Send all arrivals, once."""
        run: GateRun = self.environment.heed_run
        if run.arrivals_are_over:
            return
        arrivals = run.gate.arrivals
        count = round(arrivals.rate_per_s * arrivals.seconds)
        # The protocol changes after every round through the models, so each model is asked over both.
        samples = [run.next_sample() for _ in range(count)]
        in_turn = [number // len(run.tasks) % 2 for number in range(count)]

        def send(number: int, due_s: float) -> None:
            if in_turn[number]:
                _, calls = self._channels[number % NUM_CHANNELS]
                run.ask_grpc(self.environment, calls[samples[number].model], samples[number], due_s)
            else:
                run.ask_http(self.client, samples[number], due_s)

        def give_up(number: int, due_s: float) -> None:
            sample: Sample = samples[number]
            run.keep(sample, "gRPC" if in_turn[number] else "HTTP", (due_s, due_s), NOT_STARTED, None, "")

        send_on_schedule(count, arrivals.rate_per_s, arrivals.max_in_flight, send, give_up)
        run.arrivals_are_over = True


class Course(LoadTestShape):
    """The users of each phase, for Locust."""

    def tick(self) -> tuple[int, float, list[type[User]]] | None:
        """Return the number and the kinds of users."""
        assert self.runner
        environment: Any = self.runner.environment
        run: GateRun = environment.heed_run
        phase = run.advance()
        if phase is None:
            return None
        if phase.users is None:
            return 1, AT_ONCE, [Arrivals]
        return phase.users, AT_ONCE, [HttpModelUser, GrpcModelUser]


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Add the options of the gate run."""
    parser.add_argument(
        "--slo",
        default=str(Path(__file__).parents[1] / "slo.toml"),
        help="file with the course and the limits",
        metavar="FILE",
    )
    parser.add_argument(
        "--gate-models", default="", help="names of models, separated by commas; default: all", metavar="MODEL,..."
    )
    parser.add_argument("--target", default="heed", choices=list(TARGETS), help="runtime under load")
    parser.add_argument("--grpc-host", default="127.0.0.1:8081", help="gRPC address, host:port", metavar="HOST:PORT")
    parser.add_argument(
        "--server-pid", type=int, default=0, help="process id of the server, to read its CPU time", metavar="PID"
    )
    parser.add_argument("--report", required=True, help="file for the report in JSON", metavar="FILE")


@events.init.add_listener
def prepare(environment: Any, **_: Any) -> None:
    """Create the run before the first user starts."""
    logging.getLogger("locust.stats_logger").setLevel(logging.WARNING)  # its tables have no phases
    options: Namespace = environment.parsed_options
    gate = read_slo(Path(options.slo)).ci
    assert gate, f"{options.slo} has no table [ci]"
    models = chosen(gate.models, options.gate_models.split(",") if options.gate_models else None, Path(options.slo))
    chosen_gate = Gate(**{field: getattr(gate, field) for field in gate.__struct_fields__} | {"models": models})
    environment.heed_run = GateRun(chosen_gate, TARGETS[options.target](), options.server_pid or None)


@events.quitting.add_listener
def write_report(environment: Any, **_: Any) -> None:
    """Write the report at the end of the run."""
    run: GateRun = environment.heed_run
    report = gate_report(run.records, run.windows, run.tasks, run.gate)
    Path(environment.parsed_options.report).write_text(json.dumps(report) + "\n")
