"""The log: one line an event on standard error, whoever says it, in one format.

    structlog ────────────────────────────────────────┐
    logging (uvicorn, gRPC, asyncio), warnings ───────┤
    uncaught errors of threads and finalizers ────────┼──> renderer ──> `LogWriter` ──> standard error
    what libraries print, in Python (sys.stderr) ─────┤
    and in C (descriptor 2: ONNX Runtime, gRPC) ──────┘

Not in the format is what is written before `Logs` is there, and what comes with the death of the process: Python's
`faulthandler` writes to standard error itself, and the last words of a C library that aborts may be lost.
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
# How ONNX Runtime ("[E:onnxruntime:, file.cc:1 f] text") and gRPC ("E0000 00:00:17.5 42 file.cc:1] text") begin lines.
NATIVE_LINES = {
    "onnxruntime": re.compile(r"\[([VIWEF]):onnxruntime"),
    "grpc": re.compile(r"^([IWEF])\d{4} \d\d:"),
}
NATIVE_LEVELS = {"V": logging.DEBUG, "I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
MAX_PIPE_READ_BYTES = 64 * 2**10
# Without the values of variables: they may be long, and clients' own.
TRACEBACKS = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
READER_END_S = 0.5


class Logs:
    """The process's log, from construction to `close`; one a process."""

    def __init__(self, config: ServiceConfig) -> None:
        """Take over standard error and all that writes there."""
        try:
            self._real_fd = os.dup(STANDARD_ERROR)
        except OSError:  # it was closed: nobody wants to read
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
        """Give standard error back, and write what is buffered within this time."""
        sys.stderr, sys.excepthook = sys.__stderr__, sys.__excepthook__
        os.dup2(self._real_fd, STANDARD_ERROR)  # the last writing end of the pipe closes: its reader ends
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
        # Libraries log through the standard library: warnings and worse, in the same place and format.
        logging.basicConfig(level=max(level, logging.WARNING), handlers=[StructlogHandler()], force=True)
        logging.captureWarnings(capture=True)

    def _take_over_python(self) -> None:
        sys.excepthook = log_uncaught
        threading.excepthook = log_uncaught_of_thread
        sys.unraisablehook = log_unraisable
        sys.stderr = EventStream("stderr")
        faulthandler.enable(self._real_fd)

    def _take_over_descriptor(self) -> None:
        """Put a pipe in the place of descriptor 2, and read it in a thread: C libraries write there and never wait."""
        reading, writing = os.pipe()
        os.dup2(writing, STANDARD_ERROR)
        os.close(writing)
        self._reader = threading.Thread(target=log_native_lines, args=(reading,), name="stderr-reader", daemon=True)
        self._reader.start()


def log_hangup() -> None:
    """Say that SIGHUP does nothing; a terminal that closes must not end a server."""
    structlog.get_logger("service").info("SIGHUP is ignored: options and models are read at start alone")


class LineLogger:
    """What structlog hands rendered lines to."""

    def __init__(self, writer: LogWriter, name: str = "service") -> None:
        self._writer, self.name = writer, name

    def msg(self, message: str) -> None:
        """Log a rendered line."""
        self._writer.write(message + "\n")

    debug = info = warn = warning = error = err = exception = fatal = failure = critical = log = msg


class StructlogHandler(logging.Handler):
    """Hands records of the standard library's logging to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record; one that cannot be formatted is logged as it is."""
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
        """It is for writing."""
        return True

    def write(self, text: str) -> int:
        """Log the lines that are complete; the rest waits for its end."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                structlog.get_logger(self._name).warning(line.rstrip())
        return len(text)


def log_native_lines(pipe: int) -> None:
    """In a thread: log what C libraries write, until the other end of the pipe is closed."""
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
    """Log a line of a C library, with the level that it says."""
    if not line:
        return
    for name, form in NATIVE_LINES.items():
        if found := form.search(line):
            structlog.get_logger(name).log(NATIVE_LEVELS[found[1]], line)
            return
    structlog.get_logger("stderr").warning(line)


def log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """As `sys.excepthook`: log what ends the program."""
    structlog.get_logger("python").critical("uncaught error", exc_info=(kind, error, traceback))


def log_uncaught_of_thread(arguments: threading.ExceptHookArgs) -> None:
    """As `threading.excepthook`: log what ended a thread."""
    if arguments.exc_value is None or isinstance(arguments.exc_value, SystemExit):
        return
    thread = arguments.thread.name if arguments.thread else "unknown"
    exc_info = (arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
    structlog.get_logger("python").error("a thread has ended by an error", thread=thread, exc_info=exc_info)


def log_unraisable(unraisable: Any) -> None:
    """As `sys.unraisablehook`: log what was raised where nothing can be raised, as in a finalizer."""
    exc_info = (unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback)
    where = repr(unraisable.object)[:200]
    structlog.get_logger("python").error(unraisable.err_msg or "unraisable error", where=where, exc_info=exc_info)
