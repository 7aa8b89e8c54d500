"""Locust users of one model, over HTTP and gRPC, that check each answer they get.

    locust -f load_tests/locustfile.py --headless -u 32 -t 20s --host http://127.0.0.1:8080 --grpc-host 127.0.0.1:8081

What the model does (`--model-task`) says what is sent and how answers are judged. At the end `--report FILE` gets what
Locust's own tables do not have: quality of the answers and batch sizes.
"""

import itertools
import json
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import grpc
import grpc.experimental.gevent as grpc_gevent
from locust import FastHttpUser, User, constant, events, task
from locust.env import Environment

from load_tests.material import load_images, load_sentences, load_translations
from proto import heed_pb2, heed_pb2_grpc

grpc_gevent.init_gevent()


class Answer(NamedTuple):
    """An answer beside the one that was expected."""

    given: str
    expected: str


class ModelTask(Protocol):
    """What is sent to models of one kind, and how their answers are read and judged."""

    source: str
    inputs: list[Any]
    expected: list[str]

    def http_body(self, given: Any) -> dict[str, Any]:
        """Arguments of a POST to the task API."""

    def http_answer(self, document: Any) -> str:
        """What it answered."""

    def ask_grpc(self, stub: heed_pb2_grpc.HeedStub, model: str, given: Any) -> tuple[str, int]:
        """The answer over gRPC, and the rows of its batch."""

    def quality(self, answers: list[Answer]) -> dict[str, float]:
        """What the answers were worth."""


class TextClassification:
    """Sentences to labels."""

    def __init__(self) -> None:
        sentences = load_sentences()
        self.source, self.inputs, self.expected = sentences.source, sentences.texts, sentences.labels

    def http_body(self, given: str) -> dict[str, Any]:
        """One text."""
        return {"json": {"inputs": given}}

    def http_answer(self, document: Any) -> str:
        """The best label."""
        return str(document[0][0]["label"])

    def ask_grpc(self, stub: heed_pb2_grpc.HeedStub, model: str, given: str) -> tuple[str, int]:
        """One text."""
        answer = stub.ClassifyText(heed_pb2.ClassifyTextRequest(model=model, text=given), timeout=30)
        return answer.label, answer.receipt.batch_size

    def quality(self, answers: list[Answer]) -> dict[str, float]:
        """The share of right labels."""
        return {"accuracy": share_of_right(answers)}


class ImageClassification:
    """Image files to labels."""

    def __init__(self) -> None:
        images = load_images()
        self.source, self.inputs, self.expected = images.source, images.files, images.labels

    def http_body(self, given: bytes) -> dict[str, Any]:
        """The file itself."""
        return {"data": given, "headers": {"content-type": "image/png"}}

    def http_answer(self, document: Any) -> str:
        """The best label."""
        return str(document[0]["label"])

    def ask_grpc(self, stub: heed_pb2_grpc.HeedStub, model: str, given: bytes) -> tuple[str, int]:
        """One file."""
        answer = stub.ClassifyImage(heed_pb2.ClassifyImageRequest(model=model, image=given), timeout=30)
        return answer.label, answer.receipt.batch_size

    def quality(self, answers: list[Answer]) -> dict[str, float]:
        """The share of right labels."""
        return {"accuracy": share_of_right(answers)}


class Translation:
    """English sentences to German ones, by greedy search."""

    def __init__(self) -> None:
        pairs = load_translations()
        self.source, self.inputs, self.expected = pairs.source, pairs.texts, pairs.references

    def http_body(self, given: str) -> dict[str, Any]:
        """One text."""
        return {"json": {"inputs": given}}

    def http_answer(self, document: Any) -> str:
        """The translation."""
        return str(document[0]["translation_text"])

    def ask_grpc(self, stub: heed_pb2_grpc.HeedStub, model: str, given: str) -> tuple[str, int]:
        """One text."""
        answer = stub.Translate(heed_pb2.TranslateRequest(model=model, text=given), timeout=30)
        return answer.translation, answer.receipt.batch_size

    def quality(self, answers: list[Answer]) -> dict[str, float]:
        """BLEU and chrF of all answers together (sacreBLEU, cased and detokenised)."""
        import sacrebleu

        given, expected = [answer.given for answer in answers], [[answer.expected for answer in answers]]
        return {
            "bleu": sacrebleu.corpus_bleu(given, expected).score if given else 0.0,
            "chrf": sacrebleu.corpus_chrf(given, expected).score if given else 0.0,
        }


def share_of_right(answers: list[Answer]) -> float:
    """Of all answers."""
    return sum(answer.given == answer.expected for answer in answers) / max(1, len(answers))


TASKS: dict[str, type[ModelTask]] = {
    "text-classification": TextClassification,
    "image-classification": ImageClassification,
    "translation": Translation,
}


class Run:
    """What the users of one run share: the next input, and what was answered."""

    def __init__(self, model_task: ModelTask) -> None:
        self.task = model_task
        self._numbers = itertools.count()
        self.answers: list[Answer] = []
        self.batch_rows: Counter[int] = Counter()

    def next_input(self) -> tuple[Any, str]:
        """What to send and what to expect; every user takes the next of the same list."""
        number = next(self._numbers) % len(self.task.inputs)
        return self.task.inputs[number], self.task.expected[number]

    def check(self, given: str, expected: str, batch_rows: int) -> None:
        """Keep an answer."""
        self.answers.append(Answer(given, expected))
        self.batch_rows[batch_rows] += 1


class HttpModelUser(FastHttpUser):
    """Asks the Hugging Face task API, one input after the other."""

    wait_time = constant(0)

    @task
    def ask(self) -> None:
        """One input."""
        run: Run = self.environment.heed_run
        given, expected = run.next_input()
        url, body = f"/models/{self.environment.parsed_options.model}", run.task.http_body(given)
        with self.client.post(url, name="HTTP", catch_response=True, **body) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
                return
            batch_rows = int(response.headers["x-heed-batch-size"])
            run.check(run.task.http_answer(response.json()), expected, batch_rows)


class GrpcModelUser(User):
    """Makes the typed gRPC call, one input after the other."""

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
    def ask(self) -> None:
        """One input."""
        run: Run = self.environment.heed_run
        given, expected = run.next_input()
        started_s = time.perf_counter()
        failure: Exception | None = None
        try:
            answer, batch_rows = run.task.ask_grpc(self._stub, self._model, given)
            run.check(answer, expected, batch_rows)
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
    parser.add_argument("--model", default="sentiment", help="name of the model")
    parser.add_argument("--model-task", default="text-classification", choices=list(TASKS), help="what it does")
    parser.add_argument("--grpc-host", default="127.0.0.1:8081", help="where gRPC listens")
    parser.add_argument("--report", default="", help="file for quality and batch sizes")


@events.init.add_listener
def load_material(environment: Environment, **_: Any) -> None:
    """Before the first user starts."""
    environment.heed_run = Run(TASKS[environment.parsed_options.model_task]())


@events.quitting.add_listener
def write_report(environment: Environment, **_: Any) -> None:
    """At the end of the run."""
    options: Namespace = environment.parsed_options
    if not options.report:
        return
    stats, run = environment.stats.total, environment.heed_run
    document = {
        "sent": run.task.source,
        "requests": stats.num_requests,
        "failures": stats.num_failures,
        "requests_per_s": stats.total_rps,
        **{f"p{share}_ms": stats.get_response_time_percentile(share / 100) for share in (50, 95, 99)},
        "quality": run.task.quality(run.answers),
        "answers_checked": len(run.answers),
        "batch_rows": dict(sorted(run.batch_rows.items())),
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
