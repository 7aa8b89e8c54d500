"""Writes TorchServe's configuration, and checks that its models answer."""

import http.client
import json
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

POLL_S = 0.25


class Ports(NamedTuple):
    """The ports that TorchServe listens on."""

    http: int
    grpc: int
    metrics: int
    management_grpc: int


def configuration(host: str, ports: Ports, management_socket: Path, job_queue_size: int) -> str:
    """Write `config.properties` (TorchServe's documentation, "Advanced configuration").

    Inference and metrics listen on `host`. Calls that register or remove models are off: they load code from any
    address (CVE-2023-43654), and TorchServe is no longer maintained. The rest of the management API listens on a Unix
    socket in the user's own folder. Over gRPC, which has no such option, it listens on loopback, where it can change
    the number of a model's workers but not end the last one.
    """
    lines = {
        "inference_address": f"http://{host}:{ports.http}",
        "management_address": f"unix:{management_socket}",
        "metrics_address": f"http://{host}:{ports.metrics}",
        "grpc_inference_address": host,
        "grpc_management_address": "127.0.0.1",
        "grpc_inference_port": ports.grpc,
        "grpc_management_port": ports.management_grpc,
        "enable_model_api": "false",
        "disable_token_authorization": "true",
        "allowed_urls": "none",
        "metrics_mode": "prometheus",
        "job_queue_size": job_queue_size,
        "max_request_size": 16 * 2**20,
        "max_response_size": 16 * 2**20,
        "install_py_dep_per_model": "false",
        "enable_envvars_config": "false",
    }
    return "".join(f"{name}={value}\n" for name, value in lines.items())


class SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix domain socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = str(path)

    def connect(self) -> None:
        """Connect to the Unix socket instead of a port."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def trouble_of(management_socket: Path, name: str) -> str | None:
    """Return why a model does not answer, or None: TorchServe's `/ping` succeeds even without any model."""
    connection = SocketConnection(management_socket)
    try:
        connection.request("GET", f"/models/{name}")
        response = connection.getresponse()
        document: Any = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"the management API does not answer: {error}"
    finally:
        connection.close()
    if response.status != 200:
        return f"{name}: {document.get('message', document) if isinstance(document, dict) else document}"
    workers = [str(worker["status"]) for worker in document[0]["workers"]]
    if workers and all(status == "READY" for status in workers):
        return None
    return f"{name}: {', '.join(workers) or 'no worker'}; the reason stands in the log"


def first_trouble(management_socket: Path, names: list[str]) -> str | None:
    """Return the first model's reason for not answering."""
    return next((trouble for name in names if (trouble := trouble_of(management_socket, name))), None)


def wait_until_ready(
    management_socket: Path, names: list[str], served: subprocess.Popen[bytes], stop: threading.Event, timeout_s: float
) -> bool:
    """Wait until all models answer; False if the time is over, the process ends, or `stop` is set."""
    ends_s = time.monotonic() + timeout_s
    while time.monotonic() < ends_s and served.poll() is None:
        if first_trouble(management_socket, names) is None:
            return True
        if stop.wait(POLL_S):
            return False
    return False
