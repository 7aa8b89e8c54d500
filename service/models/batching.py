"""Decides whether rows of several requests may share an engine call of a model, and says why.

    policy.toml, config.pbtxt ── declared? ──> joined, or never
    model.onnx ── traced operator by operator, then tried on adversarial rows ──> joined where both hold

The requests of a graph that is neither declared nor proved are computed one by one.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import onnxruntime
import structlog

from model_store.folder import Manifest
from model_store.policy import BatchingDeclaration
from model_store.private_files import PrivateGraph
from service.models import row_independence
from service.models.row_independence import EqualSizes, Finding, prove_rows_independent, try_rows
from service.tensors import Arrays, TensorSpec

log = structlog.get_logger(__name__)

# Bounds of the trial of one graph: it must not hold up the start of a server.
TRIAL_BUDGET_S = 5.0
MAX_TRIAL_BYTES = 64 * 2**20  # inputs of one trial call


@dataclass(frozen=True)
class Batching:
    """Whether requests share engine calls of a model, the reason, and what determines the cost of a call."""

    joined: bool
    grounds: Literal["proved", "declared", "golden", "measured", "none"]
    reason: str  # the file that declares it, or why requests are not joined
    max_rows: int | None  # declared limit of one engine call
    constant_cost: bool  # the work of a call follows from the shapes of its inputs
    equal_sizes: EqualSizes = ()  # a request is computed alone where these dimensions of its inputs differ

    def describe(self) -> str:
        """Describe the decision in one line for the log and the model index."""
        if self.grounds == "declared":
            return f"declared {'independent' if self.joined else 'dependent'} in {self.reason}"
        if self.grounds == "measured":
            return self.reason
        if self.grounds == "golden":
            return "golden examples are answered in a batch as alone"
        return "proved" if self.joined else f"not joined: {self.reason}"


class BatchingRule:
    """Decides for each graph by declaration, or by proof and trial; outcomes of trials are stored by digest."""

    def __init__(self, state: Path | None = None) -> None:
        """Set up.

        Args:
            state: folder in which outcomes of trials are stored; None: each start tries again.
        """
        self._trials = TrialStore(state)
        rules = b"".join(path.read_bytes() for path in sorted(Path(row_independence.__path__[0]).rglob("*.py")))
        self._rules_digest = hashlib.sha256(rules + onnxruntime.__version__.encode()).hexdigest()

    def of_bare_graph(
        self,
        graph: PrivateGraph,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        run: Callable[[Arrays, float], Arrays],
        declaration: BatchingDeclaration | None,
    ) -> Batching:
        """Decide for a graph without a manifest.

        Args:
            graph: the model, and the files that it reads weights from.
            inputs: the tensors that every request must have.
            outputs: the tensors of an answer.
            run: makes an engine call with a time limit in seconds; raises TrialStopped when that has passed.
            declaration: a user's declaration about the rows of the model.
        """
        finding = _finding_of(graph)
        if declaration is not None:
            return _declared(declaration, (*inputs, *outputs), finding)
        if not finding.independent:
            return Batching(False, "none", finding.reason, None, finding.constant_cost)
        digest, problem = "", None
        if self._trials.remembers:
            digest = hashlib.sha256(f"{graph.sha256()} {self._rules_digest}".encode()).hexdigest()
            problem = self._trials.get(digest)
        if problem is None:
            problem = self._try(inputs, outputs, run)
            self._trials.put(digest, problem)
        grounds: Literal["proved", "none"] = "none" if problem else "proved"
        return Batching(not problem, grounds, problem, None, finding.constant_cost, finding.equal_sizes)

    def of_folder(self, graph: PrivateGraph, manifest: Manifest, declaration: BatchingDeclaration | None) -> Batching:
        """Decide for a folder with a manifest, whose golden examples are replayed alone and in a batch.

        The replay alone is enough to join rows; a proof is mentioned where there is one. Graphs that skip padding
        cannot be proved, because they pack the tokens of all rows into one sequence, and quantized graphs cannot,
        because all rows share one scale.

        Args:
            graph: the model's graph, or the encoder of a translation model.
            manifest: the folder's manifest; in int8 it states how much answers change with the other rows of a batch.
            declaration: a user's declaration about the rows of the model.
        """
        finding = _finding_of(graph)
        if declaration is not None:
            return _declared(declaration, (), finding)
        if manifest.precision == "int8":
            sensitivity = manifest.batch_sensitivity
            reason = "not independent, worst change not measured" if sensitivity is None else str(sensitivity)
            return Batching(True, "measured", reason, None, finding.constant_cost)
        grounds: Literal["proved", "golden"] = "proved" if finding.independent else "golden"
        return Batching(True, grounds, finding.reason, None, finding.constant_cost)

    def _try(
        self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], run: Callable[[Arrays, float], Arrays]
    ) -> str:
        ends_s = time.monotonic() + TRIAL_BUDGET_S

        def run_in_time(feeds: Arrays) -> Arrays:
            return run(feeds, ends_s - time.monotonic())

        return try_rows(inputs, outputs, run_in_time, budget_s=TRIAL_BUDGET_S, max_bytes=MAX_TRIAL_BYTES) or ""


def _finding_of(graph: PrivateGraph) -> Finding:
    with graph.file.mapped() as content:
        return prove_rows_independent(memoryview(content))


def _declared(declaration: BatchingDeclaration, tensors: Sequence[TensorSpec], finding: Finding) -> Batching:
    source, joined = declaration.source, declaration.rows_independent
    fixed = next((spec for spec in tensors if spec.shape[:1] != (-1,)), None)
    if joined and fixed is not None:
        reason = (
            f"{source} declares independent rows, but the first dimension of {fixed.name!r} has a fixed size:"
            f" its shape is {list(fixed.shape)}"
        )
        return Batching(False, "none", reason, None, finding.constant_cost)
    return Batching(joined, "declared", source, declaration.max_rows, finding.constant_cost)


class TrialStore:
    """Outcomes of trials in a folder, keyed by a digest of graph, rules and ONNX Runtime's version."""

    def __init__(self, folder: Path | None) -> None:
        """Set up; without a folder nothing is stored."""
        self._folder = folder

    @property
    def remembers(self) -> bool:
        """Whether there is a folder to store outcomes in."""
        return self._folder is not None

    def get(self, digest: str) -> str | None:
        """Look up the outcome for a graph: its problem, "" if there was none, or None if it was never tried."""
        if self._folder is None:
            return None
        try:
            return msgspec.json.decode(self._path(digest).read_bytes(), type=_Outcome).problem
        except (OSError, msgspec.DecodeError):
            return None

    def put(self, digest: str, problem: str) -> None:
        """Store an outcome. If the folder cannot be written, that is logged and the next start tries again."""
        if self._folder is None:
            return
        path = self._path(digest)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f".{time.monotonic_ns()}")
            unfinished.write_bytes(msgspec.json.encode(_Outcome(problem)))
            unfinished.replace(path)
        except OSError as error:
            log.warning("trial result is not saved", path=str(path), why=error.strerror)

    def _path(self, digest: str) -> Path:
        assert self._folder is not None
        # A leading dot: no model can have this name.
        return self._folder / ".row-independence" / f"{digest}.json"


class _Outcome(msgspec.Struct, frozen=True):
    problem: str
