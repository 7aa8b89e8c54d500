"""One run of Locust as a process of its own, and what it reports."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from load_tests.processes import pin

HERE = Path(__file__).parent
USERS = {"http": ["HttpModelUser"], "grpc": ["GrpcModelUser"], "both": ["HttpModelUser", "GrpcModelUser"]}


@dataclass(frozen=True, kw_only=True)
class Load:
    """Closed-loop users of one model: each asks as soon as it has its answer.

    Attributes:
        model: name of the model at the target.
        model_task: its task (`model_tasks.TASKS`).
        target: the runtime (`targets.TARGETS`).
        http: HTTP address, http://host:port.
        grpc: gRPC address, host:port.
        users: number of users.
        seconds: duration.
        protocol: the protocol of the users; "both" gives half of them each.
        core: the core that Locust is pinned to; None leaves it to the system.
    """

    model: str
    model_task: str
    target: str
    http: str
    grpc: str
    users: int
    seconds: int
    protocol: Literal["http", "grpc", "both"] = "both"
    core: int | None = None


def run_locust(load: Load, base: Path) -> dict[str, Any]:
    """Run Locust; return its report, and write its own tables as `<base>_*.csv`.

    Raises:
        RuntimeError: it did not report.
    """
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless", "--only-summary"]
    command += ["--model", load.model, "--model-task", load.model_task, "--target", load.target]
    command += ["--host", load.http, "--grpc-host", load.grpc]
    command += ["-u", str(load.users), "-r", str(load.users), "-t", f"{load.seconds}s"]
    command += ["--csv", str(base), "--csv-full-history", "--report", f"{base}.json", "--exit-code-on-error", "0"]
    core = load.core
    subprocess.run(
        [*command, *USERS[load.protocol]],
        check=False,
        cwd=HERE.parents[1],
        preexec_fn=None if core is None else lambda: pin(core),
    )
    if not Path(f"{base}.json").exists():
        raise RuntimeError("Locust ended without a report")
    report: dict[str, Any] = json.loads(Path(f"{base}.json").read_text())
    return report
