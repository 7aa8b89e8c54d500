"""Opens the engines of a model folder in ONNX Runtime, and decides how calls are made on a GPU."""

from collections.abc import Callable
from typing import NamedTuple

import structlog

from model_store.folder import ModelFolder
from service.engines.bucketed_session import Buckets
from service.engines.host import EngineHost
from service.engines.onnx import Engine, OnnxEngine
from service.engines.onnx_session import EngineError
from service.engines.translation import TranslationEngine
from service.models.folder_config import HubConfig, read_config

log = structlog.get_logger(__name__)

# CUDA has no kernel for DynamicQuantizeLinear, which scales the activations of an int8 graph.
CAPTURED_PRECISIONS = ("float32", "float16")


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


class _GpuCalls(NamedTuple):
    """Settings of GPU calls for one task."""

    buckets: Callable[[ModelFolder], Buckets | None]
    shapes_follow_from_bucket: bool


def _text_buckets(folder: ModelFolder) -> Buckets | None:
    assert folder.manifest is not None
    max_tokens = folder.manifest.limits.max_tokens
    if max_tokens is None:
        return None
    return Buckets(max_tokens, {"input_ids": read_config(folder, "config.json", HubConfig).pad_token_id})


_GPU_CALLS = {
    "image-classification": _GpuCalls(lambda folder: Buckets(), shapes_follow_from_bucket=True),
    "text-classification": _GpuCalls(_text_buckets, shapes_follow_from_bucket=False),
}


def buckets_of(folder: ModelFolder) -> Buckets | None:
    """Choose the sizes that calls of a model are rounded up to on a GPU; None where calls are not rounded up.

    Rows of a bare graph are never padded, because a padding row might change the answers to the others.

    Raises:
        FolderError: `config.json` is damaged.
    """
    calls = None if folder.manifest is None else _GPU_CALLS.get(folder.manifest.task)
    return None if calls is None else calls.buckets(folder)


def capture_problem(folder: ModelFolder) -> str | None:
    """Say why a model's calls cannot be captured as CUDA graphs; None when they can.

    Every shape in the graph must follow from the bucket, and every operator must run on the GPU.
    """
    if folder.manifest is None:
        return "it is bare: its shapes are not known"
    calls = _GPU_CALLS.get(folder.manifest.task)
    if calls is None or not calls.shapes_follow_from_bucket:
        return "what is computed depends on how many tokens are real"
    if folder.manifest.precision not in CAPTURED_PRECISIONS:
        return f"in {folder.manifest.precision} a part is computed on the CPU"
    return None
