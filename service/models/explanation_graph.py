"""The explanation graph of a model folder (`explain.onnx`), opened and checked when it is first needed.

    first request ──> copies made at load ──> session ──> golden rows compared ──> calls with a few steps each

One thread uses it (`service.scheduling.idle_executor`), so it is opened once and makes one call at a time. It computes
on one thread of the CPU even when predictions use a GPU: the GPU and its memory are left to predictions, and the golden
rows are then compared on the device that answers.

Inputs are one unpadded row and `alphas`, positions on the path from the empty baseline (0) to the row (1). Outputs have
the names that `export/onnx_graphs/explanation_modules.py` gives them.

Shapes: B alphas, T tokens, S source tokens, C channels, H height, W width (of attention weights: L layers, H heads).
"""

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from model_store.folder import (
    EXPLAIN,
    EXPLAIN_GOLDEN,
    ExplainGolden,
    FolderError,
    ModelFolder,
    decode_explain_golden,
)
from model_store.private_files import PrivateFile, PrivateGraph
from service.engines.host import EngineHost
from service.engines.onnx_session import EngineError, first_line, open_session, run_session
from service.engines.preemption import Terminated
from service.errors import EngineFailed, Unavailable
from service.models.golden import Golden
from service.tasks.image_classification import ImageClassification
from service.tasks.text_classification import TextClassification
from service.tasks.translation import Translation
from service.tensors import Arrays

log = structlog.get_logger(__name__)

MAX_ROW_SUM_ERROR = 1e-5  # largest error of the sum of attention weights over the tokens
THREADS = 1

Explainable = TextClassification | ImageClassification | Translation


class Attention(NamedTuple):
    """An attention output of an explanation graph."""

    output: str
    layers: int
    heads: int


def text_row(ids_T: Sequence[int], target: int) -> Arrays:
    """Make the inputs for a text and the class whose logit is explained."""
    ids = np.array(ids_T, dtype=np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "target": np.array(target)}


def image_row(pixels_CHW: NDArray[np.float32], target: int) -> Arrays:
    """Make the inputs for an image, as the served graph takes it, and the class whose logit is explained."""
    return {"pixel_values": pixels_CHW, "target": np.array(target)}


def translation_row(source_S: Sequence[int], target_T: Sequence[int]) -> Arrays:
    """Make the inputs for a source and the translation whose log probability is explained.

    The translation includes its end-of-sentence token where it has one.
    """
    source, target = np.array(source_S, dtype=np.int64), np.array(target_T, dtype=np.int64)
    return {
        "source_ids": source,
        "source_mask": np.ones_like(source),
        "target_ids": target,
        "target_mask": np.ones_like(target),
    }


class ExplainGraph:
    """The explanation graph of one model version. One thread calls it; once `ready`, its attributes do not change."""

    def __init__(self, folder: ModelFolder, task: Explainable, golden: Golden, host: EngineHost) -> None:
        """Keep private copies of the files that it needs, without opening a session.

        Args:
            folder: the folder as it was when the model was loaded.
            task: the model's task.
            golden: the model's golden examples.
            host: computes the graph, on the CPU.
        """
        self._name, self._version, self._examples = folder.name, str(folder.version), folder.golden
        self._task, self._golden, self._host = task, golden, host
        self._session: Any = None
        self._problem: str | None = None
        # Its weights lie in the files of the served graphs: these copies, with which the model was proved.
        self._files: tuple[PrivateGraph, PrivateFile] | None = None
        try:
            self._files = folder.open_graph(EXPLAIN), folder.file(EXPLAIN_GOLDEN)
        except FolderError as error:
            self._problem = str(error)
        self.ready = False  # opened and checked; other threads may read this
        # Keyed by the name that requests use, the default first.
        self.attentions: dict[str, Attention] = {}
        self.image_tokens: int | None = None  # number of tokens of an image

    def open(self) -> None:
        """Open and check the graph unless that is done already; the first time takes some tenths of a second.

        A failure of its content is permanent and is not tried again. Any other failure (no file descriptors, memory or
        threads left) may have passed by the next request, which tries again.

        Raises:
            Unavailable: the graph cannot be used now.
            Terminated: the request was cancelled.
        """
        if self.ready:
            return
        problem = self._problem
        if problem is None:
            problem = self._try_to_open()
        if problem is not None:
            name = f"model {self._name!r} version {self._version!r}"
            raise Unavailable(f"the graph that explains {name} is not used: {problem}")

    def _try_to_open(self) -> str | None:
        """Open the graph, and return why that failed or None. A permanent failure is kept."""
        model, started_s = {"model": self._name, "version": self._version}, time.perf_counter()
        problem = None
        try:
            self._open()
        except FolderError as error:
            problem = self._problem = str(error)
        except Terminated:  # the request was cancelled; the next one opens the graph
            self._session = None
            raise
        except (EngineError, EngineFailed, OSError, MemoryError) as error:
            problem = str(error) or type(error).__name__
        except Exception as error:  # whatever is wrong with the graph, predictions go on
            log.exception("explaining graph failed to load", **model)
            problem = f"{type(error).__name__}: {error}"
        if problem is None:
            self.ready, self._files = True, None
            log.info("explaining graph ready", **model, load_s=round(time.perf_counter() - started_s, 3))
        else:
            self._session = None
            log.error("explaining graph is not used", **model, why=problem, tried_again=self._problem is None)
        return problem

    def ask(self, row: Arrays, alphas_B: NDArray[np.float32], wanted: Sequence[str]) -> tuple[Arrays, float]:
        """Compute outputs of the graph at several points of the path to a row.

        Args:
            row: an input without padding, made by a function of this module.
            alphas_B: positions on the path, float32 [B], from 0 (the baseline) to 1 (the row).
            wanted: names of the outputs.

        Returns:
            the outputs by name, and the CPU time of the call in seconds.

        Raises:
            EngineFailed: the graph cannot compute these inputs.
            Terminated: the request was cancelled.
        """
        feeds = {name: np.repeat(array[None], len(alphas_B), axis=0) for name, array in row.items()}

        def call(options: Any) -> tuple[list[NDArray[Any]], float]:
            started_s = time.thread_time()
            found = self._session.run(list(wanted), feeds | {"alpha": alphas_B}, options)
            return found, time.thread_time() - started_s

        try:
            found, cpu_s = run_session(call, self._host)
        except Terminated:
            raise
        except Exception as error:  # ONNX Runtime raises many types, which have no common base class
            raise EngineFailed(f"the graph that explains failed on this input: {first_line(error)}") from error
        return dict(zip(wanted, found, strict=True)), cpu_s

    def _open(self) -> None:
        assert self._files is not None
        graph, golden_file = self._files
        golden = decode_explain_golden(golden_file.read_bytes())
        self._session = open_session(graph, THREADS, self._host)
        shapes = {output.name: output.shape for output in self._session.get_outputs()}
        names = {"encoder": "attention"}
        if isinstance(self._task, Translation):
            names = {"cross": "cross_attention", "encoder": "encoder_attention"}
        self.attentions = {part: Attention(name, *map(int, shapes[name][1:3])) for part, name in names.items()}
        if isinstance(self._task, ImageClassification):
            self.image_tokens = int(shapes["attention"][-1])
            if math.isqrt(self.image_tokens) ** 2 != self.image_tokens:
                raise FolderError(f"{EXPLAIN}: {self.image_tokens} tokens of an image are no square of patches")
        self._replay(golden)

    def _replay(self, golden: ExplainGolden) -> None:
        """Compute the golden rows and compare the outputs.

        Raises:
            FolderError: an output differs by more than the file allows, or attention weights do not sum to one.
        """
        for expected in golden.rows:
            row = self._golden_row(expected.example, expected.target)
            alphas_B = np.array([expected.alpha], dtype=np.float32)
            outputs, _ = self.ask(row, alphas_B, list(golden.tolerance))
            for name, allowed in golden.tolerance.items():
                where, found = f"{EXPLAIN_GOLDEN}: {name} of golden example {expected.example}", outputs[name][0]
                if name.endswith("attention"):
                    off_by = float(np.abs(found.sum(axis=-1) - 1).max())
                    if not off_by <= MAX_ROW_SUM_ERROR:
                        raise FolderError(f"{where}: a row sums to one but for {off_by:.3g}")
                    found = found[:, :, 0]
                kept = np.array(expected.outputs[name])
                if kept.shape != (found.size,):
                    raise FolderError(f"{where}: {found.size} numbers, not {kept.size}")
                off_by = float(np.abs(found.ravel() - kept).max()) / max(1.0, float(np.abs(kept).max()))
                if not off_by <= allowed:
                    raise FolderError(f"{where}: differs by {off_by:.3g}, the file allows {allowed:g}")

    def _golden_row(self, number: int, target: int | None) -> Arrays:
        item = self._golden.item(number)
        if isinstance(self._task, Translation):
            written = self._examples[number].tensors["greedy"]
            assert not isinstance(written, str)
            return translation_row(item.ids, self._task.ended(written)[: self._task.max_tokens])
        assert target is not None
        if isinstance(self._task, ImageClassification):
            return image_row(item.pixels_CHW, target)
        return text_row(item.ids, target)
