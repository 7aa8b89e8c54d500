"""The command `heed predict`: options, progress, exit status.

file ── `open_rows` ──> rows ── `answer_rows` ──> answers ── `writer_of` ──> file of answers
                                    ^
              model of this process, or of a server (--url)
"""

import argparse
import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import structlog

from model_store.folder import NAME, FolderError, scan
from service.engines.device import Device, DeviceMissing, choose_device
from service.errors import HeedError
from service.offline.answer_files import AnswerColumns, AnswerFile, form_of, writer_of
from service.offline.answering import answer_rows
from service.offline.embedded import EmbeddedModel, embedded_model
from service.offline.remote import RemoteModel
from service.offline.requests import RequestSettings, check_settings
from service.offline.rows import Columns, FileRefused, RowFile, open_rows
from service.sources.kinds import SourceRefused, closest
from service.sources.opening import SourceOptions, add_source_options, open_store, source_options

PROGRESS_S = {True: 0.5, False: 10.0}  # time between two reports, on a terminal and elsewhere
ROWS_FAILED, REFUSED, INTERRUPTED = 1, 2, 130


def main(options: Sequence[str]) -> int:
    """Answer a file, and return the exit status.

    0: every row has an answer, or `--keep-going` was given. 1: rows have none, the file cannot be read to its end, or
    the conversion failed. 2: nothing was answered: an option, the file or the model is wrong. 130: interrupted.
    """
    parser = command_parser()
    arguments = parser.parse_intermixed_args(options)
    sources = source_options(arguments)
    # The log of the embedded service is for operators; what concerns this command is said by its own sentences.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    report = Report()
    try:
        return predict(arguments, sources, report)
    except SourceRefused as error:
        return report.fail(str(error), error.exit_status)
    except (FileRefused, DeviceMissing, FolderError, HeedError, OSError) as error:
        sentence = str(error)
        if isinstance(error, OSError) and error.filename:
            sentence = f"{error.strerror}: {error.filename}"
        return report.fail(sentence, ROWS_FAILED if report.num_rows else REFUSED)
    except KeyboardInterrupt:
        return report.fail("interrupted", INTERRUPTED)


def command_parser() -> argparse.ArgumentParser:
    """Make the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="heed predict",
        description="Answers each row of a file with a model, in order, beside the columns of the file.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a model of the store, a checkpoint's folder or hub id, or a model folder"
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help=".csv, .tsv, .jsonl, .txt, .parquet, or a folder of images"
    )
    for name, metavar, text in (
        ("column", "NAME", "column of the inputs; default: text, path, or the only column"),
        ("pair-column", "NAME", "column of the second texts, for models that take pairs"),
        ("url", "URL", "address of a running server that has the model; default: none, the model is loaded here"),
    ):
        parser.add_argument(f"--{name}", metavar=metavar, help=text)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file of the answers, .csv, .tsv or .jsonl; default: standard output"
    )
    parser.add_argument("--encoding", default="utf-8", metavar="NAME", help="encoding of the file; default: utf-8")
    parser.add_argument("--top-k", type=positive, metavar="N", help="number of best classes in an answer")
    parser.add_argument("--truncate", action="store_true", help="cut texts that are too long, instead of refusing them")
    parser.add_argument("--keep-going", action="store_true", help="exit with status 0 even if rows have no answer")
    parser.add_argument(
        "--model-store",
        type=Path,
        default=Path(os.environ.get("HEED_MODEL_STORE", "model_store")),
        metavar="FOLDER",
        help="the model store (HEED_MODEL_STORE; default model_store)",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda", "auto"), default="cpu", help="where the model is computed; default: cpu"
    )
    add_source_options(parser)
    return parser


def positive(text: str) -> int:
    """Read a whole number above 0.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def predict(arguments: argparse.Namespace, sources: SourceOptions, report: "Report") -> int:
    """Answer a file with parsed options, and return the exit status.

    Raises:
        FileRefused, SourceRefused: the file, the model or an option is wrong.
        HeedError, FolderError, OSError: the model cannot be served, or a file cannot be written.
    """
    path: Path = arguments.file
    out: Path | None = arguments.out
    file = open_rows(path, Columns(arguments.column, arguments.pair_column), arguments.encoding)
    form = form_of(out, path, file.columns is not None)
    if out is not None and out.exists() and out.samefile(path):
        raise FileRefused(f"--out {out} is the file that is read")
    if file.remark:
        report.say(file.remark)
    device = choose_device(arguments.device)
    # Outside of the event loop, which would hold back a Ctrl-C during the conversion.
    store = None if arguments.url is not None else opened_store(arguments.model, arguments.model_store, sources, report)
    settings = RequestSettings(arguments.top_k, arguments.truncate)

    async def answer() -> None:
        async with opened_model(store, arguments, device, settings) as model:
            check_settings(model.task, settings, file, arguments.pair_column is not None)
            columns = AnswerColumns(model.task.hub_answer, settings.top_k, model.num_values)
            await answer_file(file, model, columns, form, out, report)

    asyncio.run(answer())
    report.end()
    return ROWS_FAILED if report.num_failed and not arguments.keep_going else 0


def opened_store(given: str, store: Path, sources: SourceOptions, report: "Report") -> Path:
    """Return a store with the named model alone; raises the errors of `predict`.

    Args:
        given: a model of the store, or anything that `heed serve` takes.
        store: the model store.
        sources: how a checkpoint is converted.
        report: says what is done.
    """
    if not NAME.fullmatch(given):
        return open_store([given], sources, report.say)
    if (store / given).is_dir():
        return open_store([str(store / given)], sources, report.say)
    if Path(given).exists():
        return open_store([given], sources, report.say)
    known = [found.name for found in scan(store)] if store.is_dir() else []
    raise FileRefused(f"there is no model {given!r} in {store}, and no such folder; models: {closest(given, known)}")


async def answer_file(
    file: RowFile,
    model: EmbeddedModel | RemoteModel,
    columns: AnswerColumns,
    form: str,
    out: Path | None,
    report: "Report",
) -> None:
    """Write the answer to each row; raises the errors of `predict`."""
    with AnswerFile(out) as answers:
        report.begin(answers.path)
        writer = writer_of(form, answers.file, file.columns, columns)
        writer.begin()
        async for row, document, problem in answer_rows(file.rows, file.folder, model):
            writer.write(row, document, problem)
            report.count(problem)
    report.path = answers.path


@contextlib.asynccontextmanager
async def opened_model(
    store: Path | None, arguments: argparse.Namespace, device: Device, settings: RequestSettings
) -> AsyncIterator[EmbeddedModel | RemoteModel]:
    """Open the only model of a store, or without a store that of the server; raises the errors of `predict`."""
    if store is None:
        with contextlib.closing(RemoteModel(arguments.url, arguments.model, settings)) as remote:
            yield remote
        return
    async with embedded_model(store, device, settings) as model:
        yield model


class Report:
    """Counts rows, and says on standard error how far the command is.

    Attributes:
        num_rows: rows that have been written.
        num_failed: those of them that have no answer.
        path: file with the rows so far; None: standard output, or there is none yet.
    """

    def __init__(self) -> None:
        self.num_rows = self.num_failed = 0
        self.path: Path | None = None
        self._is_terminal = sys.stderr.isatty()
        self._first_problem: str | None = None
        self._started_s = self._said_s = time.monotonic()
        self._has_line = False

    def say(self, line: str) -> None:
        """Print a line."""
        print("\n" * self._has_line + line, file=sys.stderr, flush=True)
        self._has_line = False

    def begin(self, path: Path | None) -> None:
        """Start the clock: rows will be written to `path`; None: to standard output."""
        self.path = path
        self._started_s = self._said_s = time.monotonic()

    def count(self, problem: str | None) -> None:
        """Count a row that has been written, and report from time to time."""
        now_s = time.monotonic()
        self.num_rows += 1
        if problem is not None:
            self.num_failed += 1
            self._first_problem = self._first_problem or problem
        if now_s - self._said_s >= PROGRESS_S[self._is_terminal]:
            self._said_s = now_s
            if self._is_terminal:
                print(f"\r{self.line()}\033[K", end="", file=sys.stderr, flush=True)
                self._has_line = True
            else:
                self.say(self.line())

    def line(self) -> str:
        """Return the rows so far, those without an answer, and rows a second since the first one."""
        duration_s = time.monotonic() - self._started_s
        rate = f", {self.num_rows / duration_s:,.0f} rows/s" if duration_s > 0 else ""
        failed = f", {self.num_failed:,} without an answer" if self.num_failed else ""
        return f"{self.num_rows:,} rows{failed}{rate}"

    def end(self) -> None:
        """Print the totals, and the first problem as an example."""
        where = f" in {self.path}" if self.path else ""
        example = f"; the first: {self._first_problem}" if self._first_problem else ""
        self.say(f"{self.line()}{where}{example}")

    def fail(self, sentence: str, status: int) -> int:
        """Say why the command ends early, and what it has written; return the exit status."""
        kept = f"; {self.num_rows:,} rows are in {self.path}" if self.num_rows and self.path else ""
        self.say(f"heed predict: {sentence}{kept}")
        return status
