"""`python -m export.torchserve`: TorchServe on a folder of archives, until SIGTERM.

It listens on loopback by default; models cannot be registered or removed over the network; Prometheus metrics are on.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from export.torchserve.server import Ports, configuration, first_trouble, wait_until_ready

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0


def main() -> int:
    """Start TorchServe, report when it is ready, and end it on SIGTERM; return the exit status."""
    arguments = parser().parse_args()
    archives = sorted(path.resolve() for path in arguments.archives.glob("*.mar"))
    if not archives:
        print(f"torchserve: no archive in {arguments.archives}; python -m export archive packs them", file=sys.stderr)
        return 1
    if shutil.which("java") is None:
        print("torchserve: Java is missing; TorchServe needs a Java 17 runtime (java on the path)", file=sys.stderr)
        return 1
    program = Path(sys.executable).parent / "torchserve"
    if not program.exists():
        print(
            f"torchserve: {program} is missing; `make .venv/torchserve.stamp` or `pip install 'heed[torchserve]'`"
            " installs what is needed",
            file=sys.stderr,
        )
        return 2
    ports = Ports(arguments.http_port, arguments.grpc_port, arguments.metrics_port, arguments.management_grpc_port)
    names = [path.stem for path in archives]
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # TorchServe keeps sockets and a file with its process id under fixed names in the temporary folder.
    with tempfile.TemporaryDirectory(prefix="torchserve-") as work:
        config, management = Path(work) / "config.properties", Path(work) / "management.sock"
        config.write_text(configuration(arguments.host, ports, management, arguments.job_queue_size))
        command = [str(program), "--start", "--foreground", "--ncs"]
        command += ["--disable-token-auth", "--ts-config", str(config), "--model-store", str(archives[0].parent)]
        command += ["--models", *(f"{path.stem}={path.name}" for path in archives)]
        # The handler reads bodies itself, because TorchServe's decoding loses the reason of an error.
        environment = os.environ | {"TMPDIR": work, "TS_DECODE_INPUT_REQUEST": "false", "LOG_LOCATION": work}
        environment["METRICS_LOCATION"] = work
        with subprocess.Popen(
            command, cwd=work, env=environment, start_new_session=True, stdout=sys.stderr, stderr=sys.stderr
        ) as served:
            try:
                ready = wait_until_ready(management, names, served, stop, START_TIMEOUT_S)
                if ready:
                    print(welcome(arguments.host, ports, names), flush=True)
                elif not stop.is_set():
                    print(f"torchserve: {first_trouble(management, names)}", file=sys.stderr)
                    return 1
                while not stop.wait(1.0):
                    if served.poll() is not None:
                        print(f"torchserve: ended with status {served.returncode}", file=sys.stderr)
                        return 1
                return 0
            finally:
                end(served)


def end(served: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to TorchServe's front end and workers, and SIGKILL to those that do not end."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(served.pid, number)
        except ProcessLookupError:
            return
        try:
            served.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            continue
    # The workers are not children of this process, so that nothing tells of their end; as the first process of a
    # container it inherits them, and they are not gone before it has asked for their status.
    ends_s = time.monotonic() + STOP_TIMEOUT_S
    while time.monotonic() < ends_s:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PGID, served.pid, os.WEXITED | os.WNOHANG)
        try:
            os.killpg(served.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)


def welcome(host: str, ports: Ports, names: list[str]) -> str:
    """Return the message after start: addresses and an example request."""
    return "\n".join(
        [
            f"HTTP     http://{host}:{ports.http}/predictions/<model>   (models: {', '.join(names)})",
            f"gRPC     {host}:{ports.grpc}   (org.pytorch.serve.grpc.inference, proto/torchserve.proto)",
            f"metrics  http://127.0.0.1:{ports.metrics}/metrics",
        ]
    )


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    root = argparse.ArgumentParser(prog="python -m export.torchserve", description=__doc__)
    root.add_argument(
        "--archives",
        type=Path,
        default=Path("build/archives"),
        metavar="FOLDER",
        help="folder of .mar files (default build/archives)",
    )
    root.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address of inference and metrics (default 127.0.0.1); management stays on loopback",
    )
    for name, default, what in (
        ("http", 8090, "inference over HTTP"),
        ("grpc", 8091, "inference over gRPC"),
        ("metrics", 8092, "Prometheus metrics"),
        ("management-grpc", 8093, "what is left of the management API over gRPC, on loopback"),
    ):
        root.add_argument(
            f"--{name}-port", type=int, default=default, metavar="PORT", help=f"port of {what} (default {default})"
        )
    root.add_argument(
        "--job-queue-size",
        type=int,
        default=1024,
        metavar="N",
        help="requests that may wait for one model (default 1024)",
    )
    return root


if __name__ == "__main__":
    sys.exit(main())
