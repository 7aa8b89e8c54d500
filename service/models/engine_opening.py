"""Opens the engines of a model folder in ONNX Runtime, and decides how calls are made on a GPU."""

from collections.abc import Callable

import structlog

from model_store.folder import ModelFolder
from service.engines.bucketed_session import Buckets
from service.engines.host import EngineHost
from service.engines.onnx import Engine, OnnxEngine
from service.engines.onnx_session import EngineError
from service.engines.translation import TranslationEngine
from service.models.folder_files import FolderFiles
from service.tasks.table import TASKS

log = structlog.get_logger(__name__)

# CUDA has no kernel for DynamicQuantizeLinear, which scales the activations of an int8 graph.
CAPTURED_PRECISIONS = ("float32", "float16")

OpenEngine = Callable[[ModelFolder, int, EngineHost], Engine]  # from a folder, threads of a call, and the host


def open_onnx(folder: ModelFolder, threads: int, host: EngineHost) -> Engine:
    """Open the graph of a model that has one graph. On a GPU, calls of a known task are rounded up to buckets.

    Raises:
        EngineError: ONNX Runtime refuses the graph.
        FolderError: a file that says how inputs are padded is damaged.
    """
    graph = folder.graph
    buckets = None if host.device == "cpu" else buckets_of(folder)
    if buckets is None:
        return OnnxEngine(graph, threads, host)
    problem, model = capture_problem(folder), {"model": folder.name, "version": str(folder.version)}
    if problem is None:
        try:
            engine = OnnxEngine(graph, threads, host, buckets, cuda_graphs=True)
        except EngineError as error:
            problem = f"refused: {error}"
        else:
            log.info("model is computed in buckets, with CUDA graphs", **model)
            return engine
    log.info("model is computed in buckets, without CUDA graphs", **model, why=problem)
    return OnnxEngine(graph, threads, host, buckets)


def open_translation(folder: ModelFolder, threads: int, host: EngineHost) -> TranslationEngine:
    """Open the encoder and the decoder of a translation model.

    Raises:
        EngineError: ONNX Runtime refuses one of the graphs.
    """
    assert folder.manifest is not None
    max_tokens = folder.manifest.limits.max_tokens
    assert max_tokens is not None
    return TranslationEngine(folder.encoder, folder.graph, threads, host, max_tokens=max_tokens)


def buckets_of(folder: ModelFolder) -> Buckets | None:
    """Choose the sizes that calls of a model are rounded up to on a GPU; None where calls are not rounded up.

    Rows of a bare graph are never padded, because a padding row might change the answers to the others.

    Raises:
        FolderError: `config.json` is damaged.
    """
    if folder.manifest is None or (task := TASKS.get(folder.manifest.task)) is None:
        return None
    padding = task.padding(FolderFiles(folder))
    return None if padding is None else Buckets(padding.max_length, padding.values)


def capture_problem(folder: ModelFolder) -> str | None:
    """Say why a model's calls cannot be captured as CUDA graphs; None when they can.

    Every shape in the graph must follow from the bucket, and every operator must run on the GPU.
    """
    if folder.manifest is None:
        return "the shapes of a bare graph are not known"
    task = TASKS.get(folder.manifest.task)
    if task is None or task.pads_rows:
        return "the computation depends on the number of real tokens"
    if folder.manifest.precision not in CAPTURED_PRECISIONS:
        return f"in {folder.manifest.precision} a part is computed on the CPU"
    return None
