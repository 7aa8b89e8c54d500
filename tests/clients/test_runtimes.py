"""Heed and TorchServe give the same clients the same answers on the same models."""

import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from export.conversion.golden_images import golden_images
from export.torchserve.archive import Batching, archive, newest_models
from load_tests.model_tasks import TASKS, ModelTask
from load_tests.processes import free_port
from load_tests.targets import TARGETS, Refused, Target
from tests.conftest import ROOT, START_S, running_server

MODELS = ("sentiment-small", "cifar10-vit", "translation-en-de")
PORTS = ("http", "grpc", "metrics", "management-grpc")
WAIT_S = 3 * START_S  # TorchServe takes 15 s on a quiet machine


class Runtime(NamedTuple):
    """A running runtime and its addresses."""

    target: Target
    http: str  # host:port
    grpc: str
    metrics: str
    management: str | None  # over gRPC
    popen: subprocess.Popen[str]


@contextlib.contextmanager
def running_torchserve(archives: Path) -> Iterator[Runtime]:
    """Run TorchServe on free ports until all of its models are ready."""
    addresses = {name: f"127.0.0.1:{free_port()}" for name in PORTS}
    command = [sys.executable, "-m", "export.torchserve", "--archives", str(archives)]
    for name, address in addresses.items():
        command += [f"--{name}-port", address.rsplit(":", 1)[1]]
    log = archives / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=ROOT) as popen,
    ):
        assert popen.stdout
        try:
            assert popen.stdout.readline().startswith("HTTP "), log.read_text()[-3000:]
            yield Runtime(
                TARGETS["torchserve"](),
                addresses["http"],
                addresses["grpc"],
                addresses["metrics"],
                addresses["management-grpc"],
                popen,
            )
        finally:
            popen.terminate()
            popen.wait(WAIT_S)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack the committed models into archives."""
    into = tmp_path_factory.mktemp("archives")
    found = newest_models(ROOT / "model_store")
    for name in MODELS:
        archive(found[name], into, Batching(batch_size=8, max_batch_delay_ms=20, threads=1))
    return into


@pytest.fixture(scope="module")
def torchserve(archives: Path) -> Iterator[Runtime]:
    """Run one TorchServe for all tests that only send requests."""
    if shutil.which("java") is None:
        pytest.skip("TorchServe needs Java 17, and there is no java on the path")
    with running_torchserve(archives) as running:
        yield running


@pytest.fixture(scope="module")
def heed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """Run Heed on the same models."""
    store = tmp_path_factory.mktemp("store")
    for name in MODELS:
        (store / name).symlink_to(ROOT / "model_store" / name)
    with running_server(store) as server:
        address = server.http.removeprefix("http://")
        yield Runtime(TARGETS["heed"](), address, server.grpc, address, None, server.popen)


@pytest.fixture(params=["heed", "torchserve"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    """Give each of the two runtimes."""
    running: Runtime = request.getfixturevalue(request.param)
    return running


def post(address: str, path: str, body: bytes, content_type: str) -> tuple[int, Any]:
    """Send a request; return status and document."""
    connection = http.client.HTTPConnection(address, timeout=START_S)
    with contextlib.closing(connection):
        connection.request("POST", path, body, {"content-type": content_type})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def asking(runtime: Runtime, protocol: str, model: str, task: ModelTask) -> Callable[[Any], str]:
    """Return a function that sends one input and returns the answer, or raises `Refused`."""
    if protocol == "grpc":
        channel = grpc.insecure_channel(runtime.grpc)
        ask = runtime.target.open_grpc(channel, model, task)
        return lambda given: ask(given).answer

    def ask_http(given: Any) -> str:
        status, document = post(runtime.http, runtime.target.path(model), task.body(given), task.content_type)
        if status != 200:
            raise Refused(document["error"])
        return task.answer(document)

    return ask_http


TEXTS = {"A wonderful film.": "POSITIVE", "An awful, tedious mess.": "NEGATIVE"}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_both_runtimes_give_the_same_answers(protocol: str, heed: Runtime, torchserve: Runtime) -> None:
    """The labels of texts and images, and the translations, are equal over HTTP and gRPC."""
    given: dict[str, tuple[str, list[Any]]] = {
        "sentiment-small": ("text-classification", list(TEXTS)),
        "cifar10-vit": ("image-classification", list(golden_images().values())),
        "translation-en-de": ("translation", ["The dog is asleep.", "We have no bread at home."]),
    }
    for model, (task_name, inputs) in given.items():
        task = TASKS[task_name]
        answers = [[asking(each, protocol, model, task)(one) for one in inputs] for each in (heed, torchserve)]
        assert answers[0] == answers[1], model
        assert all(answers[0])
    assert [asking(torchserve, protocol, "sentiment-small", TASKS["text-classification"])(text) for text in TEXTS] == [
        *TEXTS.values()
    ]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_bad_input_gets_an_error_from_both_runtimes(protocol: str, runtime: Runtime) -> None:
    """Both refuse an empty text, a text that is too long, and a file that is no image, with the same error."""
    for model, task_name, given, error in (
        ("sentiment-small", "text-classification", "", "empty"),
        ("sentiment-small", "text-classification", "good " * 2000, r"the model takes at most"),
        ("translation-en-de", "translation", " ", "empty"),
        ("cifar10-vit", "image-classification", b"GIF89a", "is not a JPEG, PNG or WebP file"),
    ):
        with pytest.raises(Refused, match=error):
            asking(runtime, protocol, model, TASKS[task_name])(given)


def test_parameters_are_those_of_the_task_api(runtime: Runtime) -> None:
    """Several texts in a request and `top_k` work as in the Hugging Face task API."""
    body = json.dumps({"inputs": list(TEXTS), "parameters": {"top_k": 1}}).encode()
    status, document = post(runtime.http, runtime.target.path("sentiment-small"), body, "application/json")
    assert status == 200
    assert [[each["label"] for each in one] for one in document] == [[label] for label in TEXTS.values()]
    status, document = post(runtime.http, runtime.target.path("sentiment-small"), b'{"inputs": 3}', "application/json")
    assert (status, document["error"]) == (400, "Expected `str | object | array`, got `int` - at `$.inputs`")


def test_torchserve_exports_metrics_and_refuses_to_register_models(torchserve: Runtime) -> None:
    """A registered archive would run its own code (CVE-2023-43654)."""
    asking(torchserve, "http", "sentiment-small", TASKS["text-classification"])("good")
    connection = http.client.HTTPConnection(torchserve.metrics, timeout=START_S)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        assert 'ts_inference_requests_total{model_name="sentiment-small"' in connection.getresponse().read().decode()
    assert torchserve.management
    with grpc.insecure_channel(torchserve.management) as channel:
        service = "/org.pytorch.serve.grpc.management.ManagementAPIsService/"
        for call, name in (("RegisterModel", b"x.mar"), ("UnregisterModel", b"sentiment-small")):
            # The name is field 1 of one request, the address field 10 of the other (TorchServe's management.proto).
            request = bytes([(10 if call == "RegisterModel" else 1) << 3 | 2, len(name)]) + name
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(service + call)(request, timeout=START_S)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED, call
    assert asking(torchserve, "http", "sentiment-small", TASKS["text-classification"])("good")


def test_locust_loads_torchserve_and_judges_its_answers(torchserve: Runtime, tmp_path: Path) -> None:
    """The load test for Heed passes against TorchServe, too, which does not report batch sizes."""
    slo = tmp_path / "slo.toml"
    slo.write_text('[sentiment-small]\ntask = "text-classification"\nmin_accuracy = 0.8\nmax_refused_share = 0.0\n')
    command = [sys.executable, "-m", "load_tests", "--target", "torchserve", "--http", f"http://{torchserve.http}"]
    command += ["--grpc", torchserve.grpc, "--users", "4", "--seconds", "8", "--slo", str(slo)]
    command += ["--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (report_file,) = tmp_path.glob("*.json")
    report = json.loads(report_file.read_text())
    assert report["batch_rows"] is None
    assert report["answers_checked"] == report["requests"] > 0
    assert {"HTTP", "gRPC"} == {name for name, entry in report["by_protocol"].items() if entry["requests"]}


def test_torchserve_without_archives_exits_with_a_reason(tmp_path: Path) -> None:
    """The exit status is 1, and the error names the command that packs archives."""
    command = [sys.executable, "-m", "export.torchserve", "--archives", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=START_S, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "python -m export archive packs them" in done.stderr


def test_sigterm_ends_torchserve_with_all_of_its_processes(torchserve: Runtime) -> None:
    """This test comes last because it stops the TorchServe of the other tests."""
    parents = running()
    before = {process for process in parents if descends(process, torchserve.popen.pid, parents)}
    assert len(before) > 1 + len(MODELS)  # itself, the front end, a worker for each model
    torchserve.popen.send_signal(signal.SIGTERM)
    assert torchserve.popen.wait(WAIT_S) == 0
    assert not before & running().keys()


def running() -> dict[int, int]:
    """Return each running process of this machine, with its parent."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(process.name)] = int(parent)
    return parents


def descends(process: int, ancestor: int, parents: dict[int, int]) -> bool:
    """Return whether `process` is `ancestor` or one of its descendants."""
    while process in parents and process != ancestor:
        process = parents[process]
    return process == ancestor
