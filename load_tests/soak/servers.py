"""Two servers on one store, which are restarted one after the other; their logs are left unread, files overwritten."""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from load_tests.processes import free_port
from load_tests.soak.bare_graphs import write_graphs

READY_S, STOP_S = 300.0, 90.0
QUIET_AFTER_ROLL_S = 5.0  # connections of a restarted server may end this much later
MAX_BODY_BYTES = 1_000_000  # small, so that a body beyond the limit is cheap to send
PIPE_READ_BYTES = 65_536
LAST_LINES = 5


class LogReader:
    """Reads a server's standard error in a thread; while it is paused the pipe fills up."""

    def __init__(self, pipe: int) -> None:
        self._pipe, self._going = pipe, threading.Event()
        self._going.set()
        self.tail = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Stop reading."""
        self._going.clear()

    def resume(self) -> None:
        """Continue reading."""
        self._going.set()

    def join(self) -> None:
        """Read to the end of the process."""
        self._going.set()
        self._thread.join()

    def _read(self) -> None:
        while chunk := os.read(self._pipe, PIPE_READ_BYTES):
            self.tail = (self.tail + chunk)[-PIPE_READ_BYTES:]
            self._going.wait()


class ServerSlot:
    """A server at fixed addresses, started again after each stop."""

    def __init__(self, store: Path, options: Sequence[str] = ()) -> None:
        """Choose addresses; nothing is started."""
        self.http_port, self.grpc_port = free_port(), free_port()
        self._store, self._options = store, options
        self._process: subprocess.Popen[bytes] | None = None
        self.reader: LogReader | None = None
        self.changed_s = -QUIET_AFTER_ROLL_S  # when it was last stopped or started

    @property
    def http(self) -> str:
        """Base URL of the HTTP interface."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        """Address of the gRPC interface."""
        return f"127.0.0.1:{self.grpc_port}"

    def memory_mib(self) -> float:
        """Resident memory of the server; 0 while it does not run."""
        if self._process is None or self._process.poll() is not None:
            return 0.0
        return float(psutil.Process(self._process.pid).memory_info().rss) / 2**20

    @property
    def rolling(self) -> bool:
        """Whether connections may end without an answer: the server is stopped, or was a moment ago."""
        return self._process is None or time.monotonic() - self.changed_s < QUIET_AFTER_ROLL_S

    async def start(self) -> None:
        """Start the server, and wait until every model is ready.

        Raises:
            RuntimeError: the server has ended or is not ready in time; the message has the end of its log.
        """
        command = [sys.executable, "-m", "service", "--model-store", str(self._store)]
        command += ["--http-port", str(self.http_port), "--grpc-port", str(self.grpc_port)]
        command += ["--max-body-bytes", str(MAX_BODY_BYTES), *self._options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HEED_")}
        process = await asyncio.to_thread(
            subprocess.Popen, command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
        )
        assert process.stderr is not None
        self.reader = LogReader(process.stderr.fileno())
        try:
            await self._until_ready(process)
        except BaseException:  # even if its caller was cancelled
            process.kill()
            process.wait()
            raise
        self._process, self.changed_s = process, time.monotonic()

    async def _until_ready(self, process: subprocess.Popen[bytes]) -> None:
        assert self.reader is not None
        ends_s = time.monotonic() + READY_S
        while not await self._answers_ready():
            if process.poll() is not None or time.monotonic() > ends_s:
                said = b"\n".join(self.reader.tail.splitlines()[-LAST_LINES:]).decode(errors="replace")
                raise RuntimeError(f"a server did not become ready; its log ends: {said}")
            await asyncio.sleep(0.1)

    async def _answers_ready(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.http_port)
            writer.write(b"GET /readyz HTTP/1.1\r\nhost: soak\r\nconnection: close\r\n\r\n")
            status = await reader.readline()
            writer.close()
        except OSError:
            return False
        return b" 200 " in status

    async def stop(self) -> None:
        """Send SIGTERM, and wait for the end.

        Raises:
            RuntimeError: it ends with another status than 0.
            TimeoutError: it does not end.
        """
        process, reader = self._process, self.reader
        if process is None or reader is None:
            return
        self._process, self.changed_s = None, time.monotonic()
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise TimeoutError(f"a server has not ended {STOP_S:g} s after SIGTERM") from None
        finally:
            await asyncio.to_thread(reader.join)
            assert process.stderr is not None
            process.stderr.close()
        if process.returncode:
            raise RuntimeError(f"a server has ended with status {process.returncode} after SIGTERM")

    async def roll(self) -> None:
        """Stop the server and start it again."""
        await self.stop()
        await self.start()


def make_store(store: Path, models: Path) -> None:
    """Make a store of copies of trained models and of bare graphs; its files may be overwritten."""
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir(parents=True)
    for folder in sorted(models.iterdir()):
        if (folder / "1/manifest.json").is_file():
            shutil.copytree(folder, store / folder.name)
    write_graphs(store)


class OverwrittenFiles:
    """Files of a running server's models, overwritten in place and put back before it is started again."""

    def __init__(self, store: Path) -> None:
        self._paths = [store / "soak-external/1/model.onnx.data", store / "soak-double/1/model.onnx"]
        self._paths += [store / "sentiment-small/1/model.onnx", store / "sentiment-small/1/tokenizer.json"]
        self._before: dict[Path, bytes] = {}

    def overwrite(self, seed: int) -> None:
        """Write other bytes into the first half of the files, and cut the rest of them short."""
        for number, path in enumerate(self._paths):
            content = self._before[path] = path.read_bytes()
            # The inode stays, so a mapping of the file shows the new bytes.
            with path.open("r+b") as file:
                if (number + seed) % 2:
                    file.truncate(len(content) // 2)
                else:
                    file.write(bytes(255 - byte for byte in content[:4096]))

    def restore(self) -> None:
        """Restore the original bytes."""
        for path, content in self._before.items():
            with path.open("r+b") as file:
                file.write(content)
                file.truncate()
        self._before.clear()
