"""The soak: how answers are judged, and a small soak with faults and an interruption."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from load_tests.soak.client import Reply, judge
from load_tests.soak.tally import Tally
from load_tests.wire import Answer, Request, read_events, read_labels
from tests.conftest import ROOT

NUM_REQUESTS = 240
ANSWER = Answer(("POSITIVE",), (0.9,))


def labelled(label: str, score: float) -> bytes:
    """Encode an answer of the task API."""
    return json.dumps([[{"label": label, "score": score}]]).encode()


def stream(*events: dict[str, Any]) -> bytes:
    """Encode a stream of the task API."""
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


WHOLE_STREAM = stream({"text": "Ein "}, {"text": "Hund"}, {"translation_text": "Ein Hund", "score": -0.5})
STREAM_OUT_OF_TIME = stream({"text": "Ein "}, {"error": "the deadline passed before the answer was computed"})


def request(**changes: Any) -> Request:
    """Make a request for a text whose label is known."""
    return Request(
        **({"kind": "text", "path": "/models/x", "body": b"", "read": read_labels, "expected": ANSWER} | changes)
    )


@pytest.mark.parametrize(
    ("asked", "reply", "outcome"),
    [
        (request(), Reply("200", labelled("POSITIVE", 0.9)), "right"),
        (request(), Reply("200", labelled("POSITIVE", 0.90002)), "wrong"),
        (request(), Reply("200", labelled("NEGATIVE", 0.9)), "wrong"),
        (request(), Reply("200", labelled("POSITIVE", float("nan"))), "wrong"),
        (request(), Reply("200", b"{}"), "wrong"),
        (request(tolerance=0.2, depends_on_company=True), Reply("200", labelled("NEGATIVE", 0.8)), "moved"),
        (request(tolerance=0.2, depends_on_company=True), Reply("200", labelled("POSITIVE", 0.6)), "wrong"),
        (request(), Reply("500", b"internal error"), "unexpected"),
        (request(), Reply("400", b"no"), "wrong"),
        (request(), Reply("429", b"queue is full"), "overloaded"),
        (request(), Reply("504", b"too late"), "wrong"),
        (request(timeout_s=0.001), Reply("504", b"too late"), "cancelled"),
        (request(error="INVALID_ARGUMENT", expected=None), Reply("400", b"no"), "right"),
        (request(error="INVALID_ARGUMENT", expected=None), Reply("200", b"yes"), "wrong"),
        (request(error="RESOURCE_EXHAUSTED", expected=None), Reply("413", b"no"), "right"),
        (request(path="", call="ClassifyText", error="NOT_FOUND"), Reply("NOT_FOUND", "no"), "right"),
        (request(path="", call="ClassifyText"), Reply("INTERNAL", "oh"), "unexpected"),
        (request(read=read_events, expected=Answer(("Ein Hund",), (-0.5,))), Reply("200", WHOLE_STREAM), "right"),
        (request(read=read_events), Reply("200", STREAM_OUT_OF_TIME), "unexpected"),
        (request(read=read_events, timeout_s=0.01), Reply("200", STREAM_OUT_OF_TIME), "cancelled"),
        (request(read=read_events, timeout_s=0.01), Reply("200", stream({"error": "internal"})), "unexpected"),
    ],
)
def test_answers_are_judged(asked: Request, reply: Reply, outcome: str) -> None:
    """The expected answer or error is right; scores may differ by 1e-5, those of int8 models by what they state."""
    assert judge(asked, reply)[0] == outcome


def test_a_tally_continues_from_its_file(tmp_path: Path) -> None:
    """Counts are restored; a soak of another size is refused."""
    path = tmp_path / "state.json"
    tally = Tally.read(path, 10, 1)
    tally.count("text", "right")
    tally.count("text", "wrong", "0.1 instead of 0.2")
    tally.write(path)
    again = Tally.read(path, 10, 1)
    assert (again.done, again.failures, again.counts) == (2, 1, {"text": {"right": 1, "wrong": 1}})
    assert "0.1 instead of 0.2" in again.examples[0]
    with pytest.raises(ValueError, match="--fresh begins anew"):
        Tally.read(path, 20, 1)


def test_a_small_soak_with_faults_continues_after_an_interruption(tmp_path: Path) -> None:
    """With unread logs, overwritten files and rolled servers no answer is wrong and none is lost."""
    models = tmp_path / "models"
    for name in ("sentiment-small", "cifar10-vit", "translation-en-de"):
        shutil.copytree(ROOT / "model_store" / name, models / name)
    page = tmp_path / "page.md"
    page.write_text("<!-- soak: begin -->\n<!-- soak: end -->\n")
    state = tmp_path / "state.json"
    command = [sys.executable, "-m", "load_tests.soak", "--requests", str(NUM_REQUESTS), "--users", "8"]
    command += ["--inputs", "8", "--fault-every", "40", "--model-store", str(models), "--work", str(tmp_path / "work")]
    command += ["--state", str(state), "--document", str(page)]
    environment = {name: value for name, value in os.environ.items() if name != "HEED_DATASETS"}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)

    with start() as interrupted:
        assert interrupted.stdout
        assert interrupted.stdout.readline() == "asking every reference alone\n"
        interrupted.send_signal(signal.SIGTERM)
        said = interrupted.stdout.read()
    assert (interrupted.returncode, "interrupted after" in said) == (130, True), said
    assert json.loads(state.read_text())["done"] < NUM_REQUESTS
    with start() as finished:
        said, _ = finished.communicate()
    tally = json.loads(state.read_text())
    assert (finished.returncode, tally["examples"]) == (0, []), said
    assert (tally["done"], tally["sessions"]) == (NUM_REQUESTS, 2)
    assert sum(sum(outcomes.values()) for outcomes in tally["counts"].values()) == NUM_REQUESTS
    assert tally["faults"].keys() == {"unread-log", "overwritten-files", "roll"}
    assert f"{NUM_REQUESTS} requests" in page.read_text()
