"""Provenance of a result: the command, the commit and the machine."""

import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch


def this_command() -> str:
    """Return the command line of this process."""
    return shlex.join(["python", "-m", "export", *sys.argv[1:]])


def commit_of_this_tree() -> str:
    """Return the commit of this code, with "-dirty" appended when the tree differs; "unknown" outside git."""
    run = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() or "unknown"


def hardware(device: torch.device) -> str:
    """Describe the device that computes, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{torch.get_num_threads()} threads of {names[0].strip() if names else platform.machine()}"
