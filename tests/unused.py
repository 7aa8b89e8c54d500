"""`python -m tests.unused`: names of functions, classes and constants that nothing but tests uses.

vulture compares names only, so a name that is used anywhere in the programs counts as used. Fields of records and
attributes of other libraries' objects are left out: they are read by encoders and by these libraries.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from vulture import Vulture

ROOT = Path(__file__).parents[1]

PROGRAMS = ("service", "export", "load_tests", "model_store", "proto", "heed.py")
KINDS = ("function", "class", "method", "property")
DECORATORS = ["@events.*", "@task"]  # Locust calls what they decorate
CALLED_FROM_OUTSIDE = {
    "gRPC": {
        "Check", "ClassifyImage", "CudaSharedMemoryStatus", "Explain", "ModelStreamInfer", "RepositoryIndex",
        "ServerLive", "SystemSharedMemoryStatus", "TranslateStream", "Watch"
    },
    "Locust": {"Course", "on_start", "on_stop", "tick"},
    "TorchServe": {"handle", "initialize"},
    "torch": {"forward"},
    "logging": {"writable"},
    "uvicorn": {"capture_signals", "main_loop", "send_400_response"},
    # Names that only tests use, because they check or measure a module.
    "tests": {
        "GOAWAY", "MAX_CONCURRENT_STREAMS", "encoder_buffers", "midpoints", "read_until_ended", "replay_golden_rows"
    },
}  # fmt: skip


def unused_names(folders: Sequence[Path]) -> dict[str, str]:
    """Return each name that nothing in the folders uses, with its place."""
    vulture = Vulture(ignore_decorators=DECORATORS)
    vulture.scavenge([str(folder) for folder in folders], exclude=["*_pb2*.py"])
    return {
        item.name: f"{item.filename}:{item.first_lineno}: nothing uses the {item.typ} {item.name}"
        for item in vulture.get_unused_code()
        if item.typ in KINDS or (item.typ == "variable" and item.name.isupper())
    }


def main() -> int:
    """Print unused names, and allowed ones that are used or gone; the exit status is 1 if there are any."""
    unused = unused_names([ROOT / program for program in PROGRAMS])
    allowed = set().union(*CALLED_FROM_OUTSIDE.values())
    problems = [place for name, place in unused.items() if name not in allowed]
    problems += [f"tests/unused.py allows {name}, which is used or gone" for name in sorted(allowed - unused.keys())]
    print("\n".join(problems) or "every public name is used")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
