"""Converts each checkpoint once: a cache of model folders, filled by a process that has torch.

    checkpoint ── sha256 of its files, options ──> <cache>/models/<key>/<converter>/  (a model folder: 1/)
                                                        ^
                              `python -m export load` ──┘ renamed into its place when it is proved

The second part of the path is a hash of the converting code and of the packages that it computes with, so that new code
converts again. An installation without the extra `train` serves what another one has converted.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Self

from model_store.folder import sha256
from service.sources.kinds import CONFIG, SourceRefused

CONVERTING_PACKAGES = ("onnx", "onnxscript", "onnxruntime", "tokenizers", "torch", "transformers")
# `export` and what it uses of the others.
CONVERTING_CODE = ("export", "model_store", "service.tasks", "service.explanation.methods")
STOP_S = 20.0  # time for a conversion to remove what is half made
WAKE_S = 0.5
KEY_DIGITS = 32
FAILED, INTERRUPTED, TERMINATED = 1, 130, 143


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint and how it is converted.

    Attributes:
        given: the text of the command line.
        folder: the folder; None for a model of the hub, whose id is `given`.
        name: name of the model.
        task: name of the task; None: the checkpoint's architecture tells.
        precision: precision of the graph's products.
        validate_on: labelled data to measure quality on; None: none.
    """

    given: str
    folder: Path | None
    name: str
    task: str | None
    precision: str
    validate_on: str | None


class ConversionCache:
    """Model folders of converted checkpoints, by the checkpoints' content; safe for several processes."""

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        """Use the folder `root`, which need not exist; `say` prints a line about what is done."""
        self._root, self._say = root / "models", say

    def converted(self, checkpoint: Checkpoint) -> Path:
        """Return the model folder of a checkpoint, which is converted unless the cache has it.

        Raises:
            SourceRefused: the conversion failed or was stopped, or needs packages that are not installed.
            OSError: the checkpoint cannot be read, or the cache cannot be written.
        """
        content = fingerprint(checkpoint)
        if content is None:  # never downloaded; afterwards the commit is known
            return self._convert_unknown(checkpoint)
        with self._locked(content, checkpoint) as place:
            if (entry := self._found(place, checkpoint)) is not None:
                return entry
            entry = self._convert(place, checkpoint)
            if fingerprint(checkpoint) != content:
                shutil.rmtree(entry)
                raise SourceRefused(f"{checkpoint.given} changed while it was converted; start again", FAILED)
            return entry

    def _found(self, place: Path, checkpoint: Checkpoint) -> Path | None:
        """Return the entry that this installation may serve, or None."""
        converter = converter_hash()
        if converter is None:
            entries = [path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")]
            entry = max(entries, key=lambda path: path.stat().st_mtime, default=None)
        else:
            entry = place / converter
        if entry is None or not entry.is_dir():
            return None
        self._say(f"{checkpoint.given} is converted already: {entry}")
        return entry

    def _convert(self, place: Path, checkpoint: Checkpoint) -> Path:
        """Convert into a folder beside the entry, and rename it when it is whole."""
        require_converter(checkpoint.given)
        entry, unfinished = place / str(converter_hash()), place / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed; the lock is ours
        with _Stop() as stop:
            try:
                self._say(f"converting {checkpoint.given}, once, for the cache {place}")
                run_conversion(checkpoint, unfinished, stop)
                (unfinished / checkpoint.name).rename(entry)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        self._say(f"converted {checkpoint.given}: {entry}")
        return entry

    def _convert_unknown(self, checkpoint: Checkpoint) -> Path:
        """Convert a model of the hub that must be downloaded first, whose commit is not known yet."""
        unknown = _key([checkpoint.given, "not downloaded", *_options_of(checkpoint)])
        with self._locked(unknown, checkpoint) as place:
            if fingerprint(checkpoint) is None:
                entry = self._found(place, checkpoint) or self._convert(place, checkpoint)
                if (content := fingerprint(checkpoint)) is None:  # it was downloaded to a place that is not known here
                    return entry
                with self._locked(content, checkpoint) as known:
                    if not (known / entry.name).is_dir():
                        entry.rename(known / entry.name)
                shutil.rmtree(entry, ignore_errors=True)
        return self.converted(checkpoint)

    @contextlib.contextmanager
    def _locked(self, content: str, checkpoint: Checkpoint) -> Iterator[Path]:
        """Hold the lock of a checkpoint's place in the cache; it ends with the process, however that ends."""
        place = self._root / content
        place.mkdir(parents=True, exist_ok=True)
        with (place / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say(f"another process converts {checkpoint.given}; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield place


def fingerprint(checkpoint: Checkpoint) -> str | None:
    """Return the hash of a checkpoint's files and options; None for a model of the hub that was never downloaded.

    A downloaded model counts as its commit, since the hub never changes a commit's files.

    Raises:
        OSError: a file cannot be read.
    """
    if checkpoint.folder is not None:
        return _key([files_of(checkpoint.folder), *_options_of(checkpoint)])
    snapshot = hub_snapshot(checkpoint.given)
    return None if snapshot is None else _key([checkpoint.given, snapshot.name, *_options_of(checkpoint)])


def _options_of(checkpoint: Checkpoint) -> list[str | None]:
    return [checkpoint.name, checkpoint.task, checkpoint.precision, _content_of(checkpoint.validate_on)]


def _content_of(validate_on: str | None) -> str | None:
    """Return what measured data is known by: the name of a data set, or the hash of a file."""
    return sha256(Path(validate_on)) if validate_on and Path(validate_on).is_file() else validate_on


def _key(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:KEY_DIGITS]


def files_of(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file of a checkpoint, by its path in the folder.

    Hidden files and the intermediate checkpoints of a training (`checkpoint-500/`) are left out.
    """
    found = {}
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "checkpoint-")))
        for name in sorted(names):
            if not name.startswith("."):
                file = Path(path, name)
                found[file.relative_to(folder).as_posix()] = sha256(file)
    return found


def hub_snapshot(hub_id: str) -> Path | None:
    """Return the folder of a model's main commit in the cache of the Hugging Face hub; None if it is not there."""
    variables = os.environ
    home = variables.get("HF_HOME") or str(_user_cache() / "huggingface")
    cache = Path(variables.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    model = cache / f"models--{hub_id.replace('/', '--')}"
    try:
        snapshot = model / "snapshots" / (model / "refs/main").read_text().strip()
    except OSError:
        return None
    return snapshot if (snapshot / CONFIG).is_file() else None


def default_cache() -> Path:
    """Return the folder of the cache: `$XDG_CACHE_HOME/heed`, or `~/.cache/heed`."""
    return _user_cache() / "heed"


def _user_cache() -> Path:
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # By the XDG base directory specification, a relative path counts as none.
    return given if given.is_absolute() else Path.home() / ".cache"


def converter_hash() -> str | None:
    """Return the hash of the code and the packages that convert; None if they are not installed."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        return None
    parts: list[object] = [sys.version_info[:2]]
    for package in CONVERTING_CODE:
        if (folder := _folder_of(package)) is None:
            return None
        parts += [[path.relative_to(folder).as_posix(), sha256(path)] for path in sorted(folder.rglob("*.py"))]
    for package in CONVERTING_PACKAGES:
        try:
            parts.append([package, version(package)])
        except PackageNotFoundError:  # onnxruntime-gpu in place of onnxruntime
            parts.append([package, None])
    return _key(parts)


def _folder_of(package: str) -> Path | None:
    spec = find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def require_converter(given: str) -> None:
    """Check that this installation can convert.

    Raises:
        SourceRefused: it cannot; says what to install.
    """
    if converter_hash() is None:
        raise SourceRefused(
            f"{given} is a checkpoint that the cache does not have, and this installation can only serve;"
            " `pip install 'heed[train]'` installs what its conversion needs"
        )


def run_conversion(checkpoint: Checkpoint, store: Path, stop: "_Stop") -> None:
    """Run `python -m export load` to its end; its lines go to standard error.

    Args:
        checkpoint: what is converted.
        store: model store to convert into.
        stop: passes signals to the conversion.

    Raises:
        SourceRefused: it failed, or this process was told to stop.
    """
    source = checkpoint.given if checkpoint.folder is None else str(checkpoint.folder)
    command = [sys.executable, "-P", "-m", "export", "load", source, "--name", checkpoint.name]
    command += ["--model-store", str(store), "--precision", checkpoint.precision]
    command += ["--task", checkpoint.task] if checkpoint.task else []
    command += ["--validate-on", checkpoint.validate_on] if checkpoint.validate_on else []
    # A folder `export` in the working folder must not be taken for the package (-P), which may lie on the path only.
    folder = _folder_of("export")
    path = os.pathsep.join(filter(None, [str(folder.parent if folder else ""), os.environ.get("PYTHONPATH", "")]))
    store.mkdir(parents=True, exist_ok=True)
    # In a session of its own, a terminal's Ctrl-C reaches it once, through `stop`.
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": path}, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True
    ) as child:
        status = stop.wait(child)
    if stop.number is not None:
        word, code = ("interrupted", INTERRUPTED) if stop.number == signal.SIGINT else ("terminated", TERMINATED)
        raise SourceRefused(f"{word} while {checkpoint.given} was converted; the cache is as before", code)
    if status:
        raise SourceRefused(f"{checkpoint.given} was not converted, see above", max(FAILED, status))


class _Stop:
    """Notes SIGINT and SIGTERM while the block runs, and passes the first one to a conversion as SIGTERM.

    Nothing is raised, so that no moment exists in which a signal leaves a process or a half made folder behind.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._until_s = math.inf

    def __enter__(self) -> Self:
        self._before = {each: signal.signal(each, self._note) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        if self.number is not None and kind is None:  # it came after the end of the conversion
            signal.raise_signal(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self._until_s = number, time.monotonic() + STOP_S
            self._pass_on()
        else:
            self._until_s = 0.0  # asked twice: at once

    def _pass_on(self) -> None:
        if self._child is not None and self.number is not None:
            self._child.terminate()

    def wait(self, child: subprocess.Popen[bytes]) -> int:
        """Return the exit status of a conversion; one that does not stop in time is killed with its own processes."""
        self._child = child
        self._pass_on()  # a signal may have come before the process was there
        while True:
            try:
                return child.wait(WAKE_S)
            except subprocess.TimeoutExpired:
                if time.monotonic() > self._until_s:
                    os.killpg(child.pid, signal.SIGKILL)
