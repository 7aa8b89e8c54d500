"""Locust's users, over HTTP and gRPC: each request is measured, its answer kept to be judged.

Importing this module patches the process for gevent, so only locustfiles import it.
"""

import itertools
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import grpc
from locust import FastHttpUser, User, constant, task
from locust.contrib.fasthttp import FastHttpSession
from locust.env import Environment

from load_tests.measurement import Record
from load_tests.model_tasks import TASKS, ModelTask
from load_tests.targets import TIMEOUT_S, Ask, Refused, Target

# Otherwise all channels of a process to one address share a connection.
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


class Sample(NamedTuple):
    """One request to make."""

    model: str
    given: Any
    body: bytes
    content_type: str
    expected: str | None


class Run:
    """State shared by the users of one run: the next request, and the records of finished ones."""

    def __init__(self, models: Mapping[str, str], target: Target) -> None:
        """Create a run of these models, each with its task."""
        self.tasks: dict[str, ModelTask] = {name: TASKS[model_task] for name, model_task in models.items()}
        self.target, self.phase = target, ""
        self.records: list[Record] = []
        self._numbers = itertools.count()
        self._samples = {name: samples_of(name, model) for name, model in self.tasks.items()}
        self._names = list(models)

    def next_sample(self) -> Sample:
        """Return the next request: the models take turns, and each model's inputs follow one another."""
        round_number, place = divmod(next(self._numbers), len(self._names))
        samples = self._samples[self._names[place]]
        return samples[round_number % len(samples)]

    def keep(
        self, sample: Sample, protocol: str, times_s: tuple[float, float], error: str, rows: int | None, answer: str
    ) -> Record:
        """Record a request that was due and sent at these times and ended now."""
        due_s, sent_s = times_s
        record = Record(
            self.phase, sample.model, protocol, due_s, sent_s, perf_counter(), error, rows, answer, sample.expected
        )
        self.records.append(record)
        return record

    def connect(self, address: str) -> tuple[grpc.Channel, dict[str, Ask]]:
        """Open a gRPC connection, and the call of each model on it."""
        channel = grpc.insecure_channel(address, options=OWN_CONNECTION)
        return channel, {name: self.target.open_grpc(channel, name, task) for name, task in self.tasks.items()}

    def ask_http(self, client: FastHttpSession, sample: Sample, due_s: float) -> None:
        """Send a request that is due, and record its result."""
        sent_s = perf_counter()
        with client.post(
            self.target.path(sample.model),
            name=f"{sample.model} over HTTP",
            data=sample.body,  # type: ignore[arg-type]  # bytes are sent as they are
            headers={"Content-Type": sample.content_type},
            catch_response=True,
        ) as response:
            answer, rows, error = "", None, ""
            if response.status_code != 200:
                error = f"status {response.status_code}"
            else:
                try:
                    answer = self.tasks[sample.model].answer(response.json())
                    rows = self.target.batch_rows(response.headers)
                except (LookupError, TypeError, ValueError) as wrong:
                    error = f"no answer of this task: {wrong!r}"
            if error:
                response.failure(error)
            record = self.keep(sample, "HTTP", (due_s, sent_s), error, rows, answer)
            response.request_meta["response_time"] = 1e3 * record.latency_s

    def ask_grpc(self, environment: Environment, call: Ask, sample: Sample, due_s: float) -> None:
        """Send a request that is due, and record its result."""
        sent_s = perf_counter()
        answer, rows, error = "", None, ""
        try:
            answer, rows = call(sample.given)
        except Refused as refused:
            error = str(refused)
        except (LookupError, TypeError, ValueError) as wrong:
            error = f"no answer of this task: {wrong!r}"
        record = self.keep(sample, "gRPC", (due_s, sent_s), error, rows, answer)
        environment.events.request.fire(
            request_type="gRPC",
            name=f"{sample.model} over gRPC",
            response_time=1e3 * record.latency_s,
            response_length=0,
            exception=RuntimeError(error) if error else None,
        )


def samples_of(name: str, model: ModelTask) -> list[Sample]:
    """Return every input of a model, ready to be sent."""
    expected: Sequence[str | None] = model.material.expected or [None] * len(model.inputs)
    return [
        Sample(name, given, model.body(given), model.content_type, right)
        for given, right in zip(model.inputs, expected, strict=True)
    ]


class HttpModelUser(FastHttpUser):
    """A user that asks over HTTP, one request after the other."""

    wait_time = constant(0)
    network_timeout = connection_timeout = TIMEOUT_S

    @task
    def ask(self) -> None:
        """Send one request."""
        run: Run = self.environment.heed_run
        run.ask_http(self.client, run.next_sample(), perf_counter())


class GrpcModelUser(User):
    """A user that asks over gRPC, one request after the other."""

    wait_time = constant(0)

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        run: Run = environment.heed_run
        self._channel, self._calls = run.connect(environment.parsed_options.grpc_host)

    def on_stop(self) -> None:
        """Close the connection."""
        self._channel.close()

    @task
    def ask(self) -> None:
        """Send one request."""
        run: Run = self.environment.heed_run
        sample = run.next_sample()
        run.ask_grpc(self.environment, self._calls[sample.model], sample, perf_counter())
