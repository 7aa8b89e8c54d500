"""The log: every event of the process becomes one line on standard error, in one format.

    structlog ────────────────────────────────────────┐
    logging (uvicorn, gRPC, asyncio), warnings ───────┤
    uncaught errors of threads and finalizers ────────┼──> renderer ──> `LogWriter` ──> standard error
    what libraries print, in Python (sys.stderr) ─────┤
    and in C (descriptor 2: ONNX Runtime, gRPC) ──────┘

Exceptions are lines from before `Logs` exists and from the death of the process: Python's `faulthandler` writes to
standard error itself, and the last lines of a C library that aborts may be lost.
"""

import faulthandler
import io
import logging
import os
import re
import sys
import threading
from types import TracebackType
from typing import Any

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from service.config import ServiceConfig
from service.telemetry.log_writer import LogWriter

STANDARD_ERROR = 2
# How lines of ONNX Runtime ("[E:onnxruntime:, file.cc:1 f] text") and gRPC ("E0000 00:00:17.5 42 f.cc:1] text") begin.
NATIVE_LINES = {
    "onnxruntime": re.compile(r"\[([VIWEF]):onnxruntime"),
    "grpc": re.compile(r"^([IWEF])\d{4} \d\d:"),
}
NATIVE_LEVELS = {"V": logging.DEBUG, "I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
MAX_PIPE_READ_BYTES = 64 * 2**10
# Without the values of variables, which may be long and may hold clients' data.
TRACEBACKS = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
READER_END_S = 0.5


class Logs:
    """The log of the process from construction to `close`; there must be only one."""

    def __init__(self, config: ServiceConfig) -> None:
        """Take over standard error and everything that writes to it."""
        try:
            self._real_fd = os.dup(STANDARD_ERROR)
        except OSError:  # standard error was closed, so the log is discarded
            self._real_fd = os.open(os.devnull, os.O_WRONLY)
        self._is_json = config.log_format == "json"
        colours = os.isatty(self._real_fd)
        self._renderer: Any = structlog.processors.JSONRenderer()
        if not self._is_json:
            self._renderer = structlog.dev.ConsoleRenderer(colors=colours)
        self.writer = LogWriter(self._real_fd, self._lost_line)
        self._configure_structlog(getattr(logging, config.log_level.upper()))
        self._take_over_python()
        self._take_over_descriptor()

    def close(self, timeout_s: float) -> None:
        """Restore standard error, and write what is buffered within `timeout_s`."""
        sys.stderr, sys.excepthook = sys.__stderr__, sys.__excepthook__
        os.dup2(self._real_fd, STANDARD_ERROR)  # closes the last writing end of the pipe, so its reader ends
        self._reader.join(min(READER_END_S, timeout_s))
        self.writer.close(timeout_s)

    def _lost_line(self, number: int) -> str:
        event: Any = {"event": "log lines were lost", "number": number, "level": "warning", "logger": __name__}
        for processor in (structlog.processors.TimeStamper(fmt="iso", utc=True), self._renderer):
            event = processor(None, "warning", event)
        return f"{event}\n"

    def _configure_structlog(self, level: int) -> None:
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                *((TRACEBACKS,) if self._is_json else ()),
                self._renderer,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=lambda *names: LineLogger(self.writer, *names),
            cache_logger_on_first_use=True,
        )
        # Libraries log through the standard library: their warnings and errors go to the same place and format.
        logging.basicConfig(level=max(level, logging.WARNING), handlers=[StructlogHandler()], force=True)
        logging.captureWarnings(capture=True)

    def _take_over_python(self) -> None:
        sys.excepthook = log_uncaught
        threading.excepthook = log_uncaught_of_thread
        sys.unraisablehook = log_unraisable
        sys.stderr = EventStream("stderr")
        faulthandler.enable(self._real_fd)

    def _take_over_descriptor(self) -> None:
        """Replace descriptor 2 by a pipe that a thread reads, so C libraries that write there never wait."""
        reading, writing = os.pipe()
        os.dup2(writing, STANDARD_ERROR)
        os.close(writing)
        self._reader = threading.Thread(target=log_native_lines, args=(reading,), name="stderr-reader", daemon=True)
        self._reader.start()


def log_hangup() -> None:
    """Log that SIGHUP is ignored, because closing a terminal must not end a server."""
    structlog.get_logger("service").info("SIGHUP is ignored: options and models are read at start alone")


class LineLogger:
    """A logger for structlog that writes rendered lines."""

    def __init__(self, writer: LogWriter, name: str = "service") -> None:
        self._writer, self.name = writer, name

    def msg(self, message: str) -> None:
        """Log a rendered line."""
        self._writer.write(message + "\n")

    debug = info = warn = warning = error = err = exception = fatal = failure = critical = log = msg


class StructlogHandler(logging.Handler):
    """Passes records of the standard library's logging to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record; if it cannot be formatted, its template is logged."""
        try:
            message = record.getMessage()
        except Exception:  # the caller's arguments do not fit its text
            message = str(record.msg)
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        context = {"exc_info": record.exc_info} if record.exc_info and record.exc_info[0] else {}
        structlog.get_logger(record.name).log(level, message, **context)


class EventStream(io.TextIOBase):
    """A text stream whose lines become events of the log."""

    def __init__(self, name: str) -> None:
        self._name, self._rest = name, ""

    def writable(self) -> bool:
        """Return True: the stream can be written to."""
        return True

    def write(self, text: str) -> int:
        """Log the complete lines; an incomplete one waits for its end."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                structlog.get_logger(self._name).warning(line.rstrip())
        return len(text)


def log_native_lines(pipe: int) -> None:
    """Log what C libraries write until the other end of the pipe is closed. Runs in a thread."""
    rest = b""
    while some := os.read(pipe, MAX_PIPE_READ_BYTES):
        *lines, rest = (rest + some).split(b"\n")
        if len(rest) > MAX_PIPE_READ_BYTES:
            lines, rest = [*lines, rest], b""
        for line in lines:
            log_native_line(COLOURS.sub("", line.decode(errors="backslashreplace")).strip())
    if rest:
        log_native_line(rest.decode(errors="backslashreplace"))
    os.close(pipe)


def log_native_line(line: str) -> None:
    """Log a line of a C library with its own level."""
    if not line:
        return
    for name, form in NATIVE_LINES.items():
        if found := form.search(line):
            structlog.get_logger(name).log(NATIVE_LEVELS[found[1]], line)
            return
    structlog.get_logger("stderr").warning(line)


def log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Log the error that ends the program; installed as `sys.excepthook`."""
    structlog.get_logger("python").critical("uncaught error", exc_info=(kind, error, traceback))


def log_uncaught_of_thread(arguments: threading.ExceptHookArgs) -> None:
    """Log the error that ended a thread; installed as `threading.excepthook`."""
    if arguments.exc_value is None or isinstance(arguments.exc_value, SystemExit):
        return
    thread = arguments.thread.name if arguments.thread else "unknown"
    exc_info = (arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
    structlog.get_logger("python").error("a thread has ended by an error", thread=thread, exc_info=exc_info)


def log_unraisable(unraisable: Any) -> None:
    """Log an error that cannot be raised, such as in a finalizer; installed as `sys.unraisablehook`."""
    exc_info = (unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback)
    where = repr(unraisable.object)[:200]
    structlog.get_logger("python").error(unraisable.err_msg or "unraisable error", where=where, exc_info=exc_info)
