"""Private copies of the files of a model folder: what was checked is what is used, whatever becomes of the folder.

    folder ── links and kinds checked ──> copied once, all files of one moment ──> sealed memory files
                                                                     sha256, text, ONNX Runtime <──┘

A file that is read twice may be another one the second time, and one that is mapped changes under its reader: who
overwrites it changes answers, who truncates it ends the process by SIGBUS. A sealed memory file (memfd_create(2),
F_SEAL_WRITE in fcntl(2)) cannot be changed by anybody, and several processes can map it.
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
MAX_READINGS = 3  # of a folder that somebody is writing to


class FolderError(Exception):
    """A model folder that must not be served; the message says why."""


class PrivateFile:
    """A sealed copy of a file, in memory that is freed when nothing refers to it any more."""

    def __init__(self, source: int) -> None:
        """Copy an open file, as long as it is now.

        Raises:
            OSError: it cannot be read, or memory or file descriptors are used up.
        """
        self._fd = _open_memory()
        self._close = weakref.finalize(self, os.close, self._fd)
        left = os.fstat(source).st_size
        while left and (some := os.read(source, min(left, COPIED_AT_ONCE_BYTES))):
            left -= len(some)
            _write_all(self._fd, some)
        if hasattr(fcntl, "F_ADD_SEALS"):
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            with contextlib.suppress(OSError):  # an unlinked file, where there are no memory files
                fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, seals)

    @classmethod
    def of_bytes(cls, content: bytes) -> "PrivateFile":
        """A sealed memory file with this content."""
        source = _open_memory()
        try:
            _write_all(source, content)
            os.lseek(source, 0, os.SEEK_SET)
            return cls(source)
        finally:
            os.close(source)

    @property
    def path(self) -> Path:
        """Where this process, and no other, can open the copy by name; while this object lives."""
        return Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd", str(self._fd))

    @property
    def num_bytes(self) -> int:
        """How long the file is."""
        return os.fstat(self._fd).st_size

    def read_bytes(self) -> bytes:
        """The content."""
        with self.mapped() as content:
            return bytes(content)

    def read_text(self, errors: str = "strict") -> str:
        """The content, which must be UTF-8 unless `errors` says otherwise.

        Raises:
            UnicodeDecodeError: it is not.
        """
        return self.read_bytes().decode("utf-8", errors)

    def sha256(self) -> str:
        """Hex digest of the content."""
        with self.mapped() as content:
            return hashlib.sha256(content).hexdigest()

    @contextlib.contextmanager
    def mapped(self) -> Iterator[memoryview | mmap.mmap]:
        """The content, without a copy.

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
    """A graph and the files that it reads weights from, all of them private copies.

    Attributes:
        name: of the graph's file in its folder.
        file: the graph.
        weights: the other files, by the location that the graph names.
    """

    name: str
    file: PrivateFile
    weights: Mapping[str, PrivateFile]

    def read_bytes(self) -> bytes:
        """The graph, without the other files."""
        return self.file.read_bytes()

    def sha256(self) -> str:
        """Hex digest of the graph and of all files that it reads weights from."""
        parts = [f"{self.file.sha256()}\n"]
        parts += [f"{location} {weights.sha256()}\n" for location, weights in sorted(self.weights.items())]
        return hashlib.sha256("".join(parts).encode()).hexdigest()


@dataclass
class FolderCopy:
    """Private copies of some files of one folder.

    Attributes:
        folder: on disk.
        store: the model store; None where links may lead to files of the folder only.
        files: what has been copied, by name.
    """

    folder: Path
    store: Path | None
    files: dict[str, PrivateFile] = field(default_factory=dict)
    _stamps: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def copy(self, name: str) -> PrivateFile:
        """Copy a file, unless that has been done; `name` is a path within the folder.

        Raises:
            FolderError: it is missing, is no regular file, cannot be read, or is a link that leaves the store.
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
        """Whether something of this name lies in the folder, be it a link that leads nowhere."""
        return os.path.lexists(self.folder / name)

    def changed(self) -> str | None:
        """The name of a file that is not any more what was copied, or None."""
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
            FolderError: one of the files is not a file of the folder; as `copy`.
        """
        return graph_of(name, self.copy(name), self.copy)

    def _roots(self) -> list[Path]:
        """Real paths of the folders that links may lead to."""
        folder = self.folder.resolve()
        roots = [folder] if self.store is None else [folder, self.store.resolve()]
        if folder.parent.name == "snapshots":  # the Hugging Face hub's cache: snapshots/<commit>/<file> -> ../../blobs/
            roots.append(folder.parent.parent / "blobs")
        return roots


def graph_of(name: str, file: PrivateFile, copy: Callable[[str], PrivateFile]) -> PrivateGraph:
    """A graph with the files that it reads weights from.

    Args:
        name: of the graph's file.
        file: the graph.
        copy: gives the private copy of a file of the folder.

    Raises:
        FolderError: it reads from elsewhere than its folder.
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
    """Open a file without waiting for anybody: pipes and devices are refused before they are opened."""
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
    # Once more on what has been opened: a link may have been exchanged in between.
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
