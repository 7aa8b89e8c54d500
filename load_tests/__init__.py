"""Load tests of a running server: speed, and whether the answers stay right."""

import errno
import os
import sys
from types import TracebackType

# ONNX Runtime reads this at import and sends telemetry unless it is set. An empty value counts as unset.
os.environ["ORT_DISABLE_TELEMETRY"] = os.environ.get("ORT_DISABLE_TELEMETRY") or "1"

OURS = ("export", "load_tests", "model_store", "proto", "service")  # packages of this repository
NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def ending_of(error: BaseException) -> str | None:
    """Say in one sentence why a program of this package ends early; None for a defect, which needs its traceback."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if not package or package in OURS:
        return None
    return (
        f"the package {package!r} is not installed for {sys.executable}: `make .venv/dev.stamp` or"
        " `pip install 'heed[load,bench]'` installs what is needed"
    )


def report_ending(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print the sentence of an error, or its traceback, in place of `sys.excepthook`."""
    if (sentence := ending_of(error)) is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        program = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv else "load_tests"
        print(f"{program}: {sentence}", file=sys.stderr)


# Python's name for a program while it looks for its module (`python -m load_tests...`). The programs import what may be
# missing before they do anything, so this is the place before all of them.
if sys.argv[:1] == ["-m"]:
    sys.excepthook = report_ending
