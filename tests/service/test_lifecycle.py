"""The whole server process: start, shutdown, and its cost while idle."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from proto import inference_pb2, inference_pb2_grpc
from tests.conftest import ROOT, running_server, write_endless, write_onnx
from tests.service.idle import spent_by

TEXT = "A wonderful film, and the second half is even better than the first. " * 15


def ask_rest(base: str, texts: int) -> int:
    """Send one slow request over REST; return the number of answers."""
    body = {"inputs": [{"name": "text", "shape": [texts], "datatype": "BYTES", "data": [TEXT] * texts}]}
    request = urllib.request.Request(f"{base}/v2/models/sentiment/infer", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as response:
        return len(json.load(response)["outputs"][0]["data"])


def ask_grpc(address: str, texts: int) -> int:
    """Send one slow request over gRPC; return the number of answers."""
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[texts])
    tensor.contents.bytes_contents.extend([TEXT.encode()] * texts)
    with grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        response = stub.ModelInfer(inference_pb2.ModelInferRequest(model_name="sentiment", inputs=[tensor]))
        return len(response.outputs[0].contents.bytes_contents)


def gauge(base: str, series: str) -> float:
    """Return the value of the first series with this prefix."""
    with urllib.request.urlopen(f"{base}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(series)).rsplit(" ", 1)[1])


def in_flight(base: str) -> bool:
    """Return whether both requests have been admitted: more rows wait than the first request has."""
    return gauge(base, 'heed_queue_rows{model="sentiment"') > 100


def test_sigterm_answers_admitted_requests(store: Path) -> None:
    """The server is unready at once, answers over both protocols, and exits with 0."""
    with running_server(store, "--max-batch-rows", "8") as server, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask_rest, server.http, 100), pool.submit(ask_grpc, server.grpc, 100)]
        while not in_flight(server.http) and not any(request.done() for request in asked):
            pass
        assert not any(request.done() for request in asked)
        server.popen.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            urllib.request.urlopen(f"{server.http}/readyz", timeout=5)
        assert [request.result() for request in asked] == [100, 100]
        assert server.popen.wait(timeout=60) == 0
        server.wait_for("stopped")


def test_sigterm_answers_requests_in_preprocessing(store: Path) -> None:
    """A request is admitted before its texts are tokenized."""
    inputs = [{"name": "text", "shape": [16], "datatype": "BYTES", "data": ["\u6620" * 8000] * 16}]
    body = json.dumps({"inputs": inputs, "parameters": {"truncate": True}}).encode()

    def ask(base: str) -> int:
        request = urllib.request.Request(f"{base}/v2/models/sentiment/infer", body)
        with urllib.request.urlopen(request, timeout=60) as response:
            return len(json.load(response)["outputs"][0]["data"])

    with running_server(store) as server, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, server.http)
        while not gauge(server.http, "heed_preparing_rows") and not asked.done():
            pass
        assert not asked.done()
        server.popen.send_signal(signal.SIGTERM)
        assert asked.result() == 16
        assert server.popen.wait(timeout=60) == 0


def test_the_server_listens_on_an_ipv6_address(store: Path, tmp_path: Path) -> None:
    """Both protocols work, and the log has the address."""
    shutil.copytree(store / "sentiment", tmp_path / "sentiment")
    with running_server(tmp_path, "--host", "::1") as server:
        assert server.http.startswith("http://[::1]:")
        assert (ask_rest(server.http, 1), ask_grpc(server.grpc, 1)) == (1, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_that_is_loading(number: signal.Signals, store: Path, tmp_path: Path) -> None:
    """It ends at once and in order, however long a model takes."""
    shutil.copytree(store / "double", tmp_path / "double")
    write_endless(tmp_path / "endless/1")
    with running_server(tmp_path, until="model ready") as server:
        server.popen.send_signal(number)
        assert server.popen.wait(timeout=30) == 0
        server.wait_for("stopped")


def test_health_is_current_while_models_load(store: Path, tmp_path: Path) -> None:
    """The server is not ready while a model loads, but a loaded model is."""
    shutil.copytree(store / "double", tmp_path / "double")
    write_endless(tmp_path / "endless/1")
    with running_server(tmp_path, until="model ready") as server, grpc.insecure_channel(server.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name, expected in (("", "NOT_SERVING"), ("double", "SERVING"), ("endless", "NOT_SERVING")):
            status = health.Check(health_pb2.HealthCheckRequest(service=name)).status
            watched = next(health.Watch(health_pb2.HealthCheckRequest(service=name))).status
            assert (status, watched) == (health_pb2.HealthCheckResponse.ServingStatus.Value(expected),) * 2, name
        unknown = next(health.Watch(health_pb2.HealthCheckRequest(service="nope"))).status
        assert unknown == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def test_health_watchers_are_told_of_the_shutdown(store: Path, tmp_path: Path) -> None:
    """This holds after another watcher has left, and watchers do not delay the shutdown."""
    shutil.copytree(store / "double", tmp_path / "double")
    with running_server(tmp_path) as server, grpc.insecure_channel(server.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watched = health.Watch(health_pb2.HealthCheckRequest())
        leaving = health.Watch(health_pb2.HealthCheckRequest())
        for watcher in (watched, leaving):
            assert next(watcher).status == health_pb2.HealthCheckResponse.SERVING
        leaving.cancel()
        server.popen.send_signal(signal.SIGTERM)
        assert [response.status for response in watched] == [health_pb2.HealthCheckResponse.NOT_SERVING]
        assert server.popen.wait(timeout=20) == 0


def test_a_server_without_a_usable_model_is_not_ready(tmp_path: Path) -> None:
    """It keeps running, gives the reason, and answers UNAVAILABLE."""
    (tmp_path / "broken/1").mkdir(parents=True)
    (tmp_path / "broken/1/model.onnx").write_bytes(b"junk")
    with running_server(tmp_path) as server:
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(f"{server.http}/readyz", timeout=5)
        document = json.load(raised.value)
        assert (raised.value.code, document["reason"]) == (
            503,
            f"no model could be loaded from the model store {tmp_path}",
        )
        assert "broken/1" in document["not_served"]
        assert server.stop() == 0


@pytest.mark.parametrize("content", ["", "mine"])
def test_a_server_without_a_model_says_which_store_is_empty(content: str, tmp_path: Path) -> None:
    """An error in the log and the readiness name the store by its absolute path, and a folder without a version."""
    (tmp_path / "models" / content).mkdir(parents=True)
    relative = Path(os.path.relpath(tmp_path / "models", ROOT))
    expected = f"the model store {ROOT / relative} has no model" if not content else "no model could be loaded"
    with running_server(relative) as server:
        logged = server.wait_for("no model is served", level="error")
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(f"{server.http}/readyz", timeout=5)
        document = json.load(raised.value)
        assert (raised.value.code, document["reason"]) == (503, logged["why"])
        assert expected in logged["why"]
        assert str(ROOT / relative) in logged["why"]
        if content:
            assert "put the files into mine/1/" in document["not_served"]["mine"]


def test_a_server_without_a_store_ends_with_its_absolute_path(tmp_path: Path) -> None:
    """Nothing at the path, and a file at the path, are errors in the log; the exit status is 1."""
    (tmp_path / "file").touch()
    for name, why in (("nowhere", "is not a folder: nothing is there"), ("file", "is not a folder")):
        store = os.path.relpath(tmp_path / name, ROOT)
        run = start("--model-store", store, "--http-port", "0", "--grpc-port", "0")
        logged = next(json.loads(line) for line in run.stderr.splitlines() if "cannot serve" in line)
        assert (run.returncode, logged["level"]) == (1, "error")
        assert logged["why"] == f"the model store {ROOT / store} {why}"


def test_a_new_version_that_fails_leaves_the_old_one_serving(store: Path, tmp_path: Path) -> None:
    """Requests without a version use the newest valid one, which the answer names."""
    shutil.copytree(store / "sentiment/1", tmp_path / "sentiment/1")
    shutil.copytree(store / "sentiment/1", tmp_path / "sentiment/2")
    golden = tmp_path / "sentiment/2/golden.json"
    golden.write_text(golden.read_text().replace("wonderful", "terrible"))
    manifest = tmp_path / "sentiment/2/manifest.json"
    document = json.loads(manifest.read_text())
    import hashlib

    document["files"]["golden.json"] = hashlib.sha256(golden.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(document))
    with running_server(tmp_path) as server:
        assert ask_rest(server.http, 1) == 1
        with urllib.request.urlopen(f"{server.http}/v2/models/sentiment", timeout=5) as response:
            assert json.load(response)["versions"] == ["1"]
        with urllib.request.urlopen(f"{server.http}/readyz", timeout=5) as response:
            problem = json.load(response)["not_served"]["sentiment/2"]
        assert "golden example 0: the tokenizer gives other ids" in problem


def test_an_idle_server_uses_no_cpu(store: Path) -> None:
    """Its own threads do not wake for two seconds; gRPC's threads are not counted."""
    with running_server(store, until="memory is in huge pages") as server:
        ask_rest(server.http, 1)
        pid = server.popen.pid
        ids = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
        own = [each for each in ids if Path(f"/proc/{pid}/task/{each}/comm").read_text().startswith("python")]
        assert pid in own
        before, own_before = spent_by(pid), spent_by(pid, own)
        threading.Event().wait(2.0)
        spent = spent_by(pid, own).since(own_before)
        assert spent.wakes <= 6, spent
        assert spent.cpu_s < 0.02, spent  # 1 % of a core
        assert spent_by(pid).since(before).cpu_s < 0.1


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start a server that fails or prints its help."""
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=os.environ | environment, check=False
    )


def test_invalid_options_are_refused_at_start(tmp_path: Path) -> None:
    """Examples are unknown flags and variables, contradictions, a missing store, and a port in use."""
    assert "unrecognized arguments: --prot 1" in start("--prot", "1").stderr
    unknown = start(HEED_HTTP_PROT="1")
    assert (unknown.returncode, "unknown environment variable HEED_HTTP_PROT" in unknown.stderr) == (2, True)
    assert "invalid int value: 'many'" in start(HEED_INSTANCES="many").stderr
    assert "http_port and grpc_port are both 9000" in start("--http-port", "9000", "--grpc-port", "9000").stderr
    assert "max_request_rows 512 is more than max_queue 5" in start("--max-queue", "5").stderr
    ports = ["--http-port", "0", "--grpc-port", "0"]
    missing = start("--model-store", str(tmp_path / "nowhere"), *ports)
    assert (missing.returncode, "is not a folder" in missing.stderr) == (1, True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flag, other in (("--http-port", "--grpc-port"), ("--grpc-port", "--http-port")):
            busy = start(flag, port, other, "0", "--model-store", str(tmp_path))
            assert (busy.returncode, "cannot listen" in busy.stderr) == (1, True), flag


def test_serving_does_not_need_linux(tmp_path: Path) -> None:
    """Linux's scheduling calls are optional."""
    code = (
        "import os, sys; del os.SCHED_BATCH, os.sched_setscheduler, os.sched_getaffinity;"
        "from service.__main__ import main; sys.exit(main())"
    )
    options = ["--http-port", "0", "--grpc-port", "0", "--model-store", str(tmp_path / "nowhere")]
    run = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (run.returncode, "is not a folder" in run.stderr) == (1, True), run.stderr


def test_serving_does_not_need_torch() -> None:
    """A new process imports all modules of the server, and nothing of the training extra."""
    names = "('torch', 'transformers', 'onnx', 'datasets')"
    code = f"import sys, service.__main__, service.server; print([name for name in {names} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


def test_sigterm_is_handled_before_the_server_runs() -> None:
    """The first process of a container has no default action for it."""
    code = (
        "import os, signal; from service.__main__ import prepare_process; prepare_process();"
        "os.kill(os.getpid(), signal.SIGTERM); print('not heard')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (run.returncode, run.stdout) == (0, "")


def test_variables_are_set_before_libraries_are_imported() -> None:
    """gRPC and tokenizers read them at import; the user's own values are kept."""
    code = (
        "import os, sys; from service.__main__ import prepare_process;"
        "early = [name for name in ('grpc', 'tokenizers', 'onnxruntime') if name in sys.modules]; prepare_process();"
        "print(early, os.environ['GRPC_VERBOSITY'], os.environ['TOKENIZERS_PARALLELISM'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment | {"GRPC_VERBOSITY": "A_USERS_OWN"},
    )
    assert run.stdout.split() == ["[]", "A_USERS_OWN", "false"]


def test_any_bare_graph_can_be_served(tmp_path: Path) -> None:
    """Without a manifest it is ready and described by its own tensors."""
    from onnx import TensorProto, helper

    write_onnx(
        tmp_path / "mine/3",
        [helper.make_node("Relu", ["a"], ["b"])],
        {"a": (TensorProto.FLOAT, ["n", 2])},
        {"b": (TensorProto.FLOAT, ["n", 2])},
    )
    with (
        running_server(tmp_path) as server,
        urllib.request.urlopen(f"{server.http}/v2/models/mine", timeout=5) as response,
    ):
        document = json.load(response)
    assert document["versions"] == ["3"]
    assert document["inputs"] == [{"name": "a", "datatype": "FP32", "shape": [-1, 2]}]
