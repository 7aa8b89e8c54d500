"""`python -m load_tests.drain`: requests in flight while the server is stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from load_tests.processes import free_port
from tests.conftest import ROOT, Server, running_server

USERS = 32


def drain(http: str, grpc: str, *options: str) -> subprocess.Popen[str]:
    """Start the tool on sentences of this repository."""
    command = [sys.executable, "-m", "load_tests.drain", "--http", http, "--grpc", grpc, "--users", str(USERS)]
    environment = {name: value for name, value in os.environ.items() if name != "HEED_DATASETS"}
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


def test_requests_logged_as_answered_reached_their_users(store: Path) -> None:
    """The log and the users agree, also on requests answered after SIGTERM."""
    with running_server(store, "--log-level", "debug") as server, drain(server.http, server.grpc) as users:
        assert users.stdout
        assert users.stdout.readline() == "at work\n"
        server.popen.send_signal(signal.SIGTERM)
        report = json.loads(users.stdout.read())
        assert users.wait() == 0
        assert server.popen.wait(timeout=60) == 0
        server.wait_for("(end of log)")
        told = [entry["request_id"] for entry in server.log if entry["event"] == "request answered"]
    assert sorted(told) == sorted(report["answered"])
    assert len(told) > USERS
    events = [entry["event"] for entry in server.log]
    assert "request answered" in events[events.index("draining") :]
    assert len(report["refused"]) + len(report["unanswered"]) == USERS
    assert (report["failed"], report["users_left"]) == ({}, 0)


def test_a_server_that_is_not_stopped_is_a_failure(server: Server) -> None:
    """Users that are left at the end of the time make the exit status 1."""
    with drain(server.http, server.grpc, "--seconds", "1") as users:
        said, _ = users.communicate()
    report = json.loads(said.splitlines()[-1])
    assert (users.returncode, report["users_left"], report["failed"]) == (1, USERS, {})


def test_an_error_of_the_server_is_a_failure(server: Server) -> None:
    """An error for a missing model counts neither as refused nor as unanswered."""
    with drain(server.http, server.grpc, "--model", "nope") as users:
        said, _ = users.communicate()
    report = json.loads(said)
    assert (users.returncode, len(report["failed"]), report["answered"]) == (1, USERS, [])
    assert {why.split()[1] for why in report["failed"].values()} == {"404", "NOT_FOUND"}


def test_without_a_server_all_requests_are_unanswered() -> None:
    """A refused connection is no request."""
    with drain(f"http://127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}") as users:
        said, _ = users.communicate()
    report = json.loads(said)
    assert (users.returncode, len(report["unanswered"])) == (0, USERS)
    assert "HTTP: ClientConnectorError" in report["unanswered"].values()
