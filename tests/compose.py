"""`python -m tests.compose`: builds, starts, uses, stops and removes the stack of docker-compose.yml.

The checks use running containers, which have a project name and ports of their own and are always removed at the end.
The exit status is 1 when a check fails or no Docker engine answers. `--without grafana` leaves out a service whose
image cannot be pulled; the table says so.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from load_tests.processes import free_port
from proto import heed_pb2, heed_pb2_grpc

ROOT = Path(__file__).parent.parent
SERVICES = ("heed", "prometheus", "grafana")
TORCHSERVE = "torchserve"  # the profile, and its service
PUBLISHED = {"heed": 2, "grafana": 1}  # number of published ports
SCRAPED_WITHIN_S = 60.0
COMMAND_TIMEOUT_S = 900.0  # includes pulling and building images
MIB = 2**20


class CheckFailed(Exception):
    """A check of the stack failed; the message says what is wrong."""


@dataclass(frozen=True)
class Stack:
    """The containers of one run.

    Attributes:
        project: the project name for compose.
        services: the services that are started.
        ports: the published ports of Heed's HTTP, Heed's gRPC, and Grafana.
    """

    project: str
    services: list[str]
    ports: tuple[int, int, int] = field(default_factory=lambda: (free_port(), free_port(), free_port()))

    def command(self, *arguments: str) -> list[str]:
        """Return a docker compose command for this stack."""
        return [
            "docker",
            "compose",
            "--progress",
            "quiet",
            "--project-name",
            self.project,
            "--file",
            str(ROOT / "docker-compose.yml"),
            *arguments,
        ]

    def environment(self) -> dict[str, str]:
        """Return the variables of docker-compose.yml without the user's own, which would change the stack."""
        others = {
            name: value for name, value in os.environ.items() if not name.startswith(("HEED_", "GRAFANA_", "OTEL_"))
        }
        http, grpc_port, grafana = map(str, self.ports)
        return others | {
            "HEED_HTTP_PORT": http,
            "HEED_GRPC_PORT": grpc_port,
            "GRAFANA_PORT": grafana,
            "HEED_LOG_LEVEL": "debug",  # answered requests in `stopped_under_load`
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command with its standard output as a pipe."""
        return subprocess.Popen(
            self.command(*arguments), stdout=subprocess.PIPE, text=True, cwd=ROOT, env=self.environment()
        )

    def run(self, *arguments: str) -> str:
        """Run a command and return its output.

        Raises:
            CheckFailed: the command failed.
            TimeoutExpired: it did not end in time.
        """
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=self.environment(),
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            said = (done.stderr + done.stdout).strip()[-1500:]
            raise CheckFailed(f"docker compose {' '.join(arguments)} ended with {done.returncode}: {said}")
        return done.stdout

    def containers(self) -> list[dict[str, Any]]:
        """Return Docker's description of each container, including stopped ones."""
        ids = self.run("ps", "--all", "--quiet").split()
        return json.loads(docker("inspect", *ids)) if ids else []

    def container(self, service: str) -> dict[str, Any]:
        """Return Docker's description of one container."""
        (found,) = (each for each in self.containers() if service_of(each) == service)
        return found

    def log(self, service: str) -> list[dict[str, Any]]:
        """Return the JSON entries of a service's log, also after it has stopped."""
        command = ["docker", "logs", self.container(service)["Id"]]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def ask_prometheus(self, path: str) -> Any:
        """Query Prometheus from Heed's container, because it is reachable only from there."""
        code = f"import urllib.request as r; print(r.urlopen('http://prometheus:9090/api/v1/{path}').read().decode())"
        return json.loads(self.run("exec", "-T", "heed", "python", "-c", code))["data"]


def docker(*arguments: str) -> str:
    """Run a Docker command and return its output.

    Raises:
        CheckFailed: the command failed.
    """
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckFailed(f"docker {' '.join(arguments)}: {done.stderr.strip()[-500:]}")
    return done.stdout


def service_of(container: dict[str, Any]) -> str:
    """Return the compose service of a container."""
    return str(container["Config"]["Labels"]["com.docker.compose.service"])


# --- the checks, in order; each returns what it found ------------------------------------------------------------


def images_build(stack: Stack) -> str:
    """Build the images of the Dockerfiles in this repository."""
    names = ["heed", "load", *([TORCHSERVE] if TORCHSERVE in stack.services else [])]
    stack.run("--profile", "*", "build", "--quiet", *names)
    images = ["heed", *(f"heed-{name}" for name in names[1:])]
    sizes = {image: int(docker("image", "inspect", "--format", "{{.Size}}", image)) / MIB for image in images}
    return ", ".join(f"{name} {size:.0f} MiB" for name, size in sizes.items())


def all_become_healthy(stack: Stack) -> str:
    """Wait until each service is healthy by its own health check."""
    stack.run("up", "--detach", "--wait", "--wait-timeout", "180", *stack.services)
    states = {service_of(each): each["State"].get("Health", {}).get("Status") for each in stack.containers()}
    if set(states) != set(stack.services) or set(states.values()) != {"healthy"}:
        raise CheckFailed(f"{states}")
    state = stack.container("heed")["State"]
    first = next(probe for probe in state["Health"]["Log"] if probe["ExitCode"] == 0)
    return f"{', '.join(states)}; heed {seconds_between(state['StartedAt'], first['End']):.1f} s after its start"


def seconds_between(earlier: str, later: str) -> float:
    """Return the seconds between two of Docker's timestamps, whose nanoseconds `datetime` cannot parse."""
    first, second = (datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", text)) for text in (earlier, later))
    return (second - first).total_seconds()


def heed_is_contained(stack: Stack) -> str:
    """Check user, capabilities and file system, and that the image has no packages but those that serve."""
    code = (
        "import importlib.util, json, os; from pathlib import Path;"
        "lines = Path('/proc/1/status').read_text().splitlines();"
        "status = dict(line.split(':\\t') for line in lines if ':\\t' in line);"
        "extra = [name for name in ('torch', 'transformers', 'locust', 'pip') if importlib.util.find_spec(name)];"
        "print(json.dumps([os.getuid(), status['CapEff'], status['CapBnd'], status['NoNewPrivs'],"
        " [path for path in ('/', '/opt/heed', '/models', '/tmp') if os.access(path, os.W_OK)], extra]))"
    )
    seen = json.loads(stack.run("exec", "-T", "heed", "python", "-c", code))
    nothing = "0" * 16
    if seen != [10001, nothing, nothing, "1", ["/tmp"], []]:  # noqa: S108 (a place in the container)
        raise CheckFailed(f"user, capabilities (effective, bounding), no_new_privs, writable, extra modules: {seen}")
    return "user 10001, no capabilities, no_new_privs, only /tmp writable; no torch, no pip"


def only_on_loopback(stack: Stack) -> str:
    """Check that only the ports of Heed and Grafana are published, on loopback."""
    for each in stack.containers():
        bound = [binding for ports in each["NetworkSettings"]["Ports"].values() for binding in ports or []]
        expected = PUBLISHED.get(service_of(each), 0)
        if len(bound) != expected or any(binding["HostIp"] != "127.0.0.1" for binding in bound):
            raise CheckFailed(f"{service_of(each)} is published as {bound}")
    return ", ".join(f"127.0.0.1:{port}" for port in stack.ports[: 3 if "grafana" in stack.services else 2])


def memory_when_idle(stack: Stack) -> str:
    """Return the memory of each container with all models loaded and no requests."""
    ids = [each["Id"] for each in stack.containers()]
    lines = docker("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", *ids).splitlines()
    return ", ".join(line.removeprefix(f"{stack.project}-").replace("-1 ", " ") for line in lines)


def http_answers(stack: Stack) -> str:
    """Send a task API request from the host."""
    url = f"http://127.0.0.1:{stack.ports[0]}/models/sentiment"
    body = json.dumps({"inputs": "A wonderful film."}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as response:
        best = json.load(response)[0][0]
    if best["label"] != "POSITIVE":
        raise CheckFailed(f"{best}")
    return f"{best['label']} {best['score']:.3f}"


def grpc_answers(stack: Stack) -> str:
    """Send a typed gRPC request from the host."""
    with grpc.insecure_channel(f"127.0.0.1:{stack.ports[1]}") as channel:
        request = heed_pb2.ClassifyTextRequest(model="sentiment", text="A dreadful film.")
        answer = heed_pb2_grpc.HeedStub(channel).ClassifyText(request, timeout=30)
    if answer.label != "NEGATIVE":
        raise CheckFailed(f"{answer}")
    return f"{answer.label} {answer.score:.3f}"


def prometheus_scrapes(stack: Stack) -> str:
    """Check target, request counters and rules; Prometheus itself must not be published."""
    ends_s, seen = time.monotonic() + SCRAPED_WITHIN_S, ""
    while time.monotonic() < ends_s:
        targets = {each["labels"]["job"]: each["health"] for each in stack.ask_prometheus("targets")["activeTargets"]}
        counted = {
            each["metric"]["protocol"]: int(each["value"][1])
            for each in stack.ask_prometheus("query?query=sum+by+(protocol)(heed_requests_total)")["result"]
        }
        seen = f"targets {targets}, requests {counted}"
        if targets.get("heed") == "up" and {"http", "grpc"} <= counted.keys():
            groups = stack.ask_prometheus("rules")["groups"]
            if not groups:
                raise CheckFailed("no rule is loaded")
            version = stack.ask_prometheus("status/buildinfo")["version"]
            return f"Prometheus {version}: {seen}, {sum(len(group['rules']) for group in groups)} rules"
        time.sleep(1)
    raise CheckFailed(f"after {SCRAPED_WITHIN_S:.0f} s: {seen}")


def grafana_shows(stack: Stack) -> str:
    """Check that an anonymous user can view the dashboard and its data source, and cannot change anything."""
    base = f"http://127.0.0.1:{stack.ports[2]}"

    def get(path: str) -> Any:
        with urllib.request.urlopen(f"{base}/api/{path}", timeout=10) as response:
            return json.load(response)

    version, dashboards = get("health")["version"], [each["title"] for each in get("search?type=dash-db")]
    if not dashboards:
        raise CheckFailed("no dashboard is provisioned")
    try:
        request = urllib.request.Request(f"{base}/api/folders", b'{"title": "x"}', {"content-type": "application/json"})
        urllib.request.urlopen(request, timeout=10)
    except urllib.error.HTTPError as error:
        if error.code not in {401, 403}:
            raise
    else:
        raise CheckFailed("anybody may create a folder")
    return f"Grafana {version}: {', '.join(dashboards)}; read-only"


def locust_runs(stack: Stack) -> str:
    """Run the load profile for a few seconds against load_tests/slo.toml."""
    said = stack.run("run", "--rm", "--no-TTY", "load", "--model", "sentiment", "--users", "8", "--seconds", "5")
    found = re.search(r"sentiment: (\d+) requests", said)
    if not found:
        raise CheckFailed(said[-1000:])
    return f"{found[1]} requests of 8 users in 5 s; every limit of slo.toml was kept"


def torchserve_answers(stack: Stack) -> str:
    """Run the same load on TorchServe without errors; Prometheus scrapes it too."""
    command = ["run", "--rm", "--no-TTY", "--entrypoint", "locust", "load", "-f", "load_tests/user_load/locustfile.py"]
    command += ["--headless", "--only-summary", "--target", TORCHSERVE, "--model", "sentiment", "-u", "4", "-t", "5s"]
    command += ["--host", "http://torchserve:8090", "--grpc-host", "torchserve:8091", "--report", "/dev/stdout"]
    said = stack.run(*command)
    report = json.loads(said[said.index("{\n") :])
    targets = {each["labels"]["job"]: each["health"] for each in stack.ask_prometheus("targets")["activeTargets"]}
    if targets[TORCHSERVE] != "up":
        raise CheckFailed(f"{targets}")
    return f"{report['requests']} requests, {report['failures']} failed; target up"


def stopped_under_load(stack: Stack) -> str:
    """Stop Heed with 64 users waiting: every request that it logged as answered reached its user."""
    command = ["run", "--rm", "--no-TTY", "--entrypoint", "python", "load", "-m", "load_tests.drain", "--users", "64"]
    with stack.start(*command, "--http", "http://heed:8080", "--grpc", "heed:8081") as users:
        assert users.stdout
        for line in users.stdout:
            if line.strip() == "at work":
                break
        stack.run("stop", "heed")
        said = users.stdout.read()
    if users.returncode:
        raise CheckFailed(f"load_tests.drain ended with {users.returncode}: {said[-1000:]}")
    report = json.loads(said.splitlines()[-1])
    log = stack.log("heed")
    events = [entry["event"] for entry in log]
    if "draining" not in events:
        raise CheckFailed("the log has no event `draining`: the server has not received SIGTERM")
    late = [entry["request_id"] for entry in log[events.index("draining") :] if entry["event"] == "request answered"]
    told = {entry["request_id"] for entry in log if entry["event"] == "request answered"}
    if lost := sorted(told & {*report["refused"], *report["unanswered"]}):
        raise CheckFailed(f"answered according to the server, but not to its users: {', '.join(lost)}")
    if unknown := sorted(set(report["answered"]) - told):
        raise CheckFailed(f"answered, but not in the server's log: {', '.join(unknown)}")
    if not late:
        raise CheckFailed("no request was in flight at SIGTERM, so this run does not test the shutdown")
    reasons = sorted({re.split(r"[;(]", why)[0] for why in report["unanswered"].values()})
    return (
        f"{len(report['answered'])} answered, {len(late)} of them after SIGTERM, none lost;"
        f" then {len(report['refused'])} refused because of the shutdown,"
        f" {len(report['unanswered'])} that did not reach the server" + (f" ({'; '.join(reasons)})" if reasons else "")
    )


def ended_in_order(stack: Stack) -> str:
    """Check that a container ended with exit status 0 and without SIGKILL."""
    state = stack.container("heed")["State"]
    if state["Status"] != "exited" or state["ExitCode"] or state["OOMKilled"]:
        raise CheckFailed(f"{state['Status']} with {state['ExitCode']}")
    return "exit status 0"


def nothing_is_left(stack: Stack) -> str:
    """Check that no container, network or volume of this run is left."""
    take_down(stack)
    label = f"label=com.docker.compose.project={stack.project}"
    kinds = {"container": ["ps", "--all"], "network": ["network", "ls"], "volume": ["volume", "ls"]}
    for kind, command in kinds.items():
        if docker(*command, "--quiet", "--filter", label).strip():
            raise CheckFailed(f"a {kind} is left")
    return "containers, networks and volumes are gone"


CHECKS: dict[str, Callable[[Stack], str]] = {
    "images are built": images_build,
    "all become healthy": all_become_healthy,
    "heed is contained": heed_is_contained,
    "published on loopback": only_on_loopback,
    "memory when idle": memory_when_idle,
    "HTTP": http_answers,
    "gRPC": grpc_answers,
    "Prometheus scrapes heed": prometheus_scrapes,
    "Grafana shows": grafana_shows,
    "Locust": locust_runs,
    TORCHSERVE: torchserve_answers,
    "stopped under load": stopped_under_load,
    "ended in order": ended_in_order,
    "taken down": nothing_is_left,
}


# --- the run ---------------------------------------------------------------------------------------------------------


def take_down(stack: Stack) -> None:
    """Remove the stack, whatever its state."""
    stack.run("--profile", "*", "down", "--volumes", "--remove-orphans")


@contextmanager
def taken_down_in_the_end(stack: Stack) -> Iterator[None]:
    """Remove the stack at the end, also after a failure or Ctrl-C."""
    try:
        yield
    finally:
        take_down(stack)


def main() -> int:
    """Run the checks one after another, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.compose", description=__doc__)
    parser.add_argument(
        "--without", action="append", default=[], choices=SERVICES[1:], help="a service whose image is not here"
    )
    parser.add_argument("--with", dest="profiles", action="append", default=[], choices=[TORCHSERVE], help="a profile")
    arguments = parser.parse_args()
    left_out: list[str] = arguments.without
    if "prometheus" in left_out and "grafana" not in left_out:
        parser.error("grafana shows what prometheus gathers: --without prometheus --without grafana")
    archives = Path(os.environ.get("TORCHSERVE_ARCHIVES", ROOT / "build/archives"))
    if TORCHSERVE in arguments.profiles and not list(archives.glob("*.mar")):
        parser.error(f"{archives} has no archives for TorchServe; python -m export archive writes them")
    console = Console(width=None if sys.stdout.isatty() else 120)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the stack is removed then too
    try:
        engine = docker("version", "--format", "{{.Server.Version}}").strip()
    except (CheckFailed, FileNotFoundError) as error:
        console.print(f"compose-test: FAILED, no Docker engine answers here: {error}", soft_wrap=True, markup=False)
        return 1
    services = [name for name in SERVICES if name not in left_out] + arguments.profiles
    stack = Stack(f"heed-test-{os.getpid()}", services)
    not_here = {*SERVICES, TORCHSERVE} - set(services)
    checks = {name: check for name, check in CHECKS.items() if not any(one in name.lower() for one in not_here)}
    table = Table("check", "passed", "result", title=f"docker compose, engine {engine}")
    passed = failed = 0
    with taken_down_in_the_end(stack):
        for name, check in checks.items():
            console.print(f"{name} ...")
            try:
                table.add_row(name, "yes", Text(check(stack)))
                passed += 1
            except (CheckFailed, OSError, grpc.RpcError, LookupError, ValueError, subprocess.SubprocessError) as error:
                failed += 1
                table.add_row(name, "NO", Text(f"{type(error).__name__}: {error}"))
                if check in {images_build, all_become_healthy}:
                    table.add_row("(the others)", "-", "not tried")
                    break
    for name in left_out:
        table.add_row(name, "-", "left out by --without: not checked")
    console.print(table)
    console.print(f"compose-test: {passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
