"""The installed package: its version, and what an incomplete installation lacks."""

import sys
from importlib.metadata import PackageNotFoundError, version

OURS = ("export", "load_tests", "model_store", "proto", "service")  # packages of this repository


def installed_version() -> str:
    """Return the version; "unknown" if the package runs from a folder without being installed."""
    try:
        return version("heed")
    except PackageNotFoundError:
        return "unknown"


def not_installed(error: ModuleNotFoundError, extra: str = "") -> str:
    """Say in one sentence which package is missing, and what installs it.

    Args:
        error: the import that failed.
        extra: the extra of pyproject.toml that has the package; "" for what serving needs.

    Raises:
        ModuleNotFoundError: the error itself, if the module is one of this repository: no installation has it.
    """
    package = (error.name or "").partition(".")[0]
    if not package or package in OURS:
        raise error
    make = "make serve" if not extra else f"make .venv/{extra}.stamp"
    pip = "pip install --editable ." if not extra else f"pip install 'heed[{extra}]'"
    return f"the package {package!r} is not installed for {sys.executable}: `{make}` or `{pip}` installs what is needed"
