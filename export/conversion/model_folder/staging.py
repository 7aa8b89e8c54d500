"""Unfinished model folders beside the models of a store, locked so that no other conversion removes them."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

CONVERTING = ".converting-"  # prefix of unfinished folders, which servers ignore


@contextlib.contextmanager
def folder_in_the_making(store: Path) -> Iterator[Path]:
    """Make an empty folder beside the store's models, which is removed afterwards.

    It is locked while in use, so that the next conversion can tell it from a folder of a killed process.
    """
    store.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with _locked(store):  # a folder must not look abandoned between its creation and its lock
            _remove_abandoned(store)
            temporary = stack.enter_context(tempfile.TemporaryDirectory(dir=store, prefix=CONVERTING))
            stack.enter_context(_locked(Path(temporary)))
        folder = Path(temporary) / "folder"
        folder.mkdir()
        yield folder


@contextlib.contextmanager
def _locked(folder: Path, operation: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Lock a folder; the lock ends with the process that holds it.

    Raises:
        BlockingIOError: another process holds the lock, and `operation` does not wait.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(store: Path) -> None:
    """Remove the folders that killed conversions left behind."""
    for folder in store.glob(f"{CONVERTING}*"):
        with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(folder)
