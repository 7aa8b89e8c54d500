"""Private copies of a model folder's files, so that the checked bytes are the used bytes even if the folder changes.

    folder ── links and kinds checked ──> copied once, all files of one moment ──> sealed memory files
                                                                     sha256, text, ONNX Runtime <──┘

A file that is read twice may have changed in between, and a mapped file changes while it is used: overwriting it
changes answers, and truncating it kills the process by SIGBUS. A sealed memory file (memfd_create(2), F_SEAL_WRITE in
fcntl(2)) cannot be changed by any process, and several processes can map it.
"""

import contextlib
import fcntl
import hashlib
import mmap
import os
import stat
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from model_store.external_data import external_locations

COPIED_AT_ONCE_BYTES = 2**20
MAX_READINGS = 3  # attempts to copy a folder that changes meanwhile


class FolderError(Exception):
    """A model folder that must not be served; the message says why."""


class PrivateFile:
    """A sealed in-memory copy of a file; the memory is freed with the last reference to it."""

    def __init__(self, source: int) -> None:
        """Copy an open file in its present length.

        Raises:
            OSError: the file cannot be read, or memory or file descriptors are used up.
        """
        self._fd = _open_memory()
        self._close = weakref.finalize(self, os.close, self._fd)
        left = os.fstat(source).st_size
        while left and (some := os.read(source, min(left, COPIED_AT_ONCE_BYTES))):
            left -= len(some)
            _write_all(self._fd, some)
        if hasattr(fcntl, "F_ADD_SEALS"):
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            with contextlib.suppress(OSError):  # without memory files, the copy is an unlinked file
                fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, seals)

    @classmethod
    def of_bytes(cls, content: bytes) -> "PrivateFile":
        """Make a sealed memory file with this content."""
        source = _open_memory()
        try:
            _write_all(source, content)
            os.lseek(source, 0, os.SEEK_SET)
            return cls(source)
        finally:
            os.close(source)

    @property
    def path(self) -> Path:
        """Path by which this process alone can open the copy, as long as this object lives."""
        return Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd", str(self._fd))

    @property
    def num_bytes(self) -> int:
        """Size of the file in bytes."""
        return os.fstat(self._fd).st_size

    def read_bytes(self) -> bytes:
        """Return the content."""
        with self.mapped() as content:
            return bytes(content)

    def read_text(self, errors: str = "strict") -> str:
        """Return the content as text; it must be UTF-8 unless `errors` says otherwise.

        Raises:
            UnicodeDecodeError: the content is not UTF-8.
        """
        return self.read_bytes().decode("utf-8", errors)

    def sha256(self) -> str:
        """Return the sha256 of the content as hexadecimal digits."""
        with self.mapped() as content:
            return hashlib.sha256(content).hexdigest()

    @contextlib.contextmanager
    def mapped(self) -> Iterator[memoryview | mmap.mmap]:
        """Map the content into memory without a copy.

        Raises:
            OSError: memory is used up.
        """
        if self.num_bytes == 0:  # mmap rejects length 0
            yield memoryview(b"")
            return
        with mmap.mmap(self._fd, 0, prot=mmap.PROT_READ) as content:
            yield content


def _open_memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("heed-model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as unlinked:  # not Linux
        return os.dup(unlinked.fileno())


def _write_all(fd: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


@dataclass(frozen=True)
class PrivateGraph:
    """Private copies of a graph and of the files that it reads weights from.

    Attributes:
        name: name of the graph's file in its folder.
        file: the graph.
        weights: the files with weights, by the location that the graph names.
    """

    name: str
    file: PrivateFile
    weights: Mapping[str, PrivateFile]

    def read_bytes(self) -> bytes:
        """Return the graph without the files of its weights."""
        return self.file.read_bytes()

    def sha256(self) -> str:
        """Return the sha256 of the graph and all files of its weights, as hexadecimal digits."""
        parts = [f"{self.file.sha256()}\n"]
        parts += [f"{location} {weights.sha256()}\n" for location, weights in sorted(self.weights.items())]
        return hashlib.sha256("".join(parts).encode()).hexdigest()


@dataclass
class FolderCopy:
    """Private copies of some files of one folder.

    Attributes:
        folder: the folder on disk.
        store: the model store; None if links may lead to files of the folder only.
        files: the copies so far, by name.
    """

    folder: Path
    store: Path | None
    files: dict[str, PrivateFile] = field(default_factory=dict)
    _stamps: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def copy(self, name: str) -> PrivateFile:
        """Copy a file unless it has been copied; `name` is a path within the folder.

        Raises:
            FolderError: the file is missing, is not a regular file, cannot be read, or is a link that leaves the store.
        """
        if name not in self.files:
            source = _open_regular(self.folder, name, self._roots())
            try:
                self._stamps[name] = _stamp(os.fstat(source))
                self.files[name] = PrivateFile(source)
            except OSError as error:
                raise FolderError(f"{name} cannot be read: {error.strerror}") from error
            finally:
                os.close(source)
        return self.files[name]

    def has(self, name: str) -> bool:
        """Whether the folder has an entry of this name, including a broken link."""
        return os.path.lexists(self.folder / name)

    def changed(self) -> str | None:
        """Return the name of a file that has changed since it was copied, or None."""
        for name, stamp in self._stamps.items():
            try:
                now = _stamp((self.folder / name).stat())
            except OSError:
                return name
            if now != stamp:
                return name
        return None

    def graph(self, name: str) -> PrivateGraph:
        """Copy a graph and the files that it reads weights from.

        Raises:
            FolderError: a file lies outside of the folder, or for the reasons of `copy`.
        """
        return graph_of(name, self.copy(name), self.copy)

    def _roots(self) -> list[Path]:
        """Return the real paths of the folders that links may lead to."""
        folder = self.folder.resolve()
        roots = [folder] if self.store is None else [folder, self.store.resolve()]
        if folder.parent.name == "snapshots":  # the Hugging Face hub's cache: snapshots/<commit>/<file> -> ../../blobs/
            roots.append(folder.parent.parent / "blobs")
        return roots


def graph_of(name: str, file: PrivateFile, copy: Callable[[str], PrivateFile]) -> PrivateGraph:
    """Collect a graph and the files that it reads weights from.

    Args:
        name: name of the graph's file.
        file: the graph.
        copy: returns the private copy of a file of the folder.

    Raises:
        FolderError: the graph reads weights from outside of its folder.
    """
    with file.mapped() as content, memoryview(content) as view:
        locations = external_locations(view)
    weights = {}
    for location in sorted(locations):
        path = PurePosixPath(location)
        if path.is_absolute() or ".." in path.parts or "\0" in location or not path.name:
            raise FolderError(f"{name} reads weights from {location!r}; it may read files of its own folder only")
        weights[location] = copy(str(path))
    return PrivateGraph(name, file, weights)


def _open_regular(folder: Path, name: str, roots: list[Path]) -> int:
    """Open a regular file without blocking: pipes and devices are refused before they are opened."""
    path = folder / name
    try:
        real = path.resolve(strict=True)
        _check_inside(name, real, roots)
        _check_kind(name, real.stat().st_mode)
        source = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FolderError(f"{name} is missing" + (", its link leads nowhere" if path.is_symlink() else "")) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise FolderError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    # Checked again on the opened file, because a link may have been replaced in between.
    try:
        _check_kind(name, os.fstat(source).st_mode)
        opened = Path(f"/proc/self/fd/{source}")
        if opened.exists():
            _check_inside(name, opened.readlink(), roots)
    except FolderError:
        os.close(source)
        raise
    return source


def _check_inside(name: str, real: Path, roots: list[Path]) -> None:
    if not any(real.is_relative_to(root) for root in roots):
        raise FolderError(f"{name} is a link that leaves the model store; only files inside the store are read")


def _check_kind(name: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise FolderError(f"{name} is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file")


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
