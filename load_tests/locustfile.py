"""Locust users of a sentiment model, over HTTP and gRPC, that check each answer they get.

    locust -f load_tests/locustfile.py --headless -u 32 -t 20s --host http://127.0.0.1:8080 --grpc-host 127.0.0.1:8081

At the end `--report FILE` gets what Locust's own tables do not have: accuracy of the answers and batch sizes.
"""

import itertools
import json
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import grpc.experimental.gevent as grpc_gevent
from locust import FastHttpUser, User, constant, events, task
from locust.env import Environment

from load_tests.texts import load_sentences
from proto import heed_pb2, heed_pb2_grpc

grpc_gevent.init_gevent()

SENTENCES = load_sentences()
_numbers = itertools.count()
_checked: Counter[str] = Counter()
_batch_rows: Counter[int] = Counter()


def next_sentence() -> tuple[str, str]:
    """A text and its true label; every user takes the next of the same list."""
    number = next(_numbers) % len(SENTENCES.texts)
    return SENTENCES.texts[number], SENTENCES.labels[number]


def check(label: str, expected: str, batch_rows: int) -> None:
    """Count an answer."""
    _checked["right" if label == expected else "wrong"] += 1
    _batch_rows[batch_rows] += 1


class HttpSentimentUser(FastHttpUser):
    """Asks the Hugging Face task API, one text after the other."""

    wait_time = constant(0)

    @task
    def classify(self) -> None:
        """One text."""
        text, expected = next_sentence()
        url = f"/models/{self.environment.parsed_options.model}"
        with self.client.post(url, json={"inputs": text}, name="HTTP", catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
                return
            check(response.json()[0][0]["label"], expected, int(response.headers["x-heed-batch-size"]))


class GrpcSentimentUser(User):
    """Makes the typed gRPC call, one text after the other."""

    wait_time = constant(0)

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._channel = grpc.insecure_channel(environment.parsed_options.grpc_host)
        self._stub = heed_pb2_grpc.HeedStub(self._channel)
        self._model = environment.parsed_options.model

    def on_stop(self) -> None:
        """Close the connection."""
        self._channel.close()

    @task
    def classify(self) -> None:
        """One text."""
        text, expected = next_sentence()
        started_s = time.perf_counter()
        failure: Exception | None = None
        try:
            answer = self._stub.ClassifyText(heed_pb2.ClassifyTextRequest(model=self._model, text=text), timeout=30)
            check(answer.label, expected, answer.receipt.batch_size)
        except grpc.RpcError as error:
            failure = RuntimeError(error.code().name)
        self.environment.events.request.fire(
            request_type="gRPC",
            name="gRPC",
            response_time=1e3 * (time.perf_counter() - started_s),
            response_length=0,
            exception=failure,
        )


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Our own flags."""
    parser.add_argument("--model", default="sentiment", help="name of the text classifier")
    parser.add_argument("--grpc-host", default="127.0.0.1:8081", help="where gRPC listens")
    parser.add_argument("--report", default="", help="file for accuracy and batch sizes")


@events.quitting.add_listener
def write_report(environment: Environment, **_: Any) -> None:
    """At the end of the run."""
    options: Namespace = environment.parsed_options
    if not options.report:
        return
    stats = environment.stats.total
    document = {
        "sentences": SENTENCES.source,
        "requests": stats.num_requests,
        "failures": stats.num_failures,
        "requests_per_s": stats.total_rps,
        **{f"p{share}_ms": stats.get_response_time_percentile(share / 100) for share in (50, 95, 99)},
        "accuracy": _checked["right"] / max(1, sum(_checked.values())),
        "answers_checked": sum(_checked.values()),
        "batch_rows": dict(sorted(_batch_rows.items())),
        "errors": {f"{error.method} {error.error}": error.occurrences for error in environment.stats.errors.values()},
        "by_protocol": {
            name: {
                "requests": entry.num_requests,
                "requests_per_s": entry.total_rps,
                **{f"p{share}_ms": entry.get_response_time_percentile(share / 100) for share in (50, 95, 99)},
            }
            for (name, _), entry in environment.stats.entries.items()
        },
    }
    Path(options.report).write_text(json.dumps(document, indent=2) + "\n")
