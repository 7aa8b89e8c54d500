"""Plans an explanation: checks the request, splits the input into features, draws the samples."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from PIL.Image import Image

from service.errors import InvalidRequest
from service.explanation.graph_methods import AttentionSelector
from service.explanation.messages import (
    DEFAULT_METHOD,
    GRAPH_METHODS,
    MAX_SEED,
    METHODS,
    ExplainRequest,
    Method,
)
from service.explanation.methods.features import PATCHES_A_SIDE, Patches, Words
from service.explanation.methods.gradients import DEFAULT_STEPS, MAX_STEPS, MIN_STEPS
from service.explanation.methods.perturbation import METHODS as SAMPLING_METHODS
from service.explanation.methods.perturbation import Plan as SamplingPlan
from service.explanation.methods.perturbation import plan as plan_samples
from service.models.explanation_graph import ExplainGraph
from service.models.repository import ServedModel
from service.tasks.explainable import Explainable, ImageParts, TextParts
from service.tasks.images.image_file import DecodingMemory


class ExplanationPlan(NamedTuple):
    """The features of an input and the samples to evaluate."""

    method: Method
    seed: int
    features: Words | Patches
    samples: SamplingPlan | None  # None for graph methods
    steps: int  # number of steps, for `gradients`
    selector: AttentionSelector
    target: Any  # what the request names, as the task's `target_of` returns it
    text: TextParts | None = None  # for an input that is explained by its words
    picture: Callable[[int], Image] | None = None  # for an image: makes the image below the overlay


def methods_of(model: ServedModel) -> list[Method]:
    """Return the explanation methods that a model supports, the default first."""
    if model.task.explainable is None:
        return []
    return [*SAMPLING_METHODS, *(GRAPH_METHODS if model.loaded.graph is not None else ())]


def check_request(model: ServedModel, request: ExplainRequest) -> Explainable:
    """Check the options of an explanation before the input is read.

    Args:
        model: model that answers.
        request: options of the explanation.

    Returns:
        the task of the model.

    Raises:
        InvalidRequest: the model cannot be explained, or not with these options.
    """
    task, name = model.task.explainable, f"model {model.name!r}"
    if task is None:
        raise InvalidRequest(f"{name} takes {model.task.accepts}; texts and images can be explained")
    method = request.method
    offered = ", ".join(methods_of(model))
    if method in GRAPH_METHODS and model.loaded.graph is None:
        raise InvalidRequest(f"{name} has no graph for method {method!r}; it has {offered}")
    if method is not None and method not in METHODS:
        raise InvalidRequest(f"method {method!r} is not known; {name} has {offered}")
    if method != "attention":
        for field, value in request.selector._asdict().items():
            if value is not None:
                raise InvalidRequest(f"{field} applies to method 'attention', not to {method or DEFAULT_METHOD!r}")
    elif request.n_samples is not None:
        raise InvalidRequest("n_samples does not apply to method 'attention'")
    if method == "gradients" and request.n_samples is not None and not MIN_STEPS <= request.n_samples <= MAX_STEPS:
        limits = f"between {MIN_STEPS} and {MAX_STEPS}"
        raise InvalidRequest(
            f"n_samples is the number of steps of gradients and must lie {limits}, not {request.n_samples}"
        )
    if request.seed is not None and not 0 <= request.seed <= MAX_SEED:
        raise InvalidRequest(f"seed must lie between 0 and {MAX_SEED}, not {request.seed}")
    return task


def plan_explanation(
    task: Explainable,
    graph: ExplainGraph | None,
    request: ExplainRequest,
    item: Any,
    given: Any,
    name: str,
    *,
    truncate: bool,
    field: str,
    max_image_pixels: int,
    memory: DecodingMemory | None = None,
) -> ExplanationPlan:
    """Split an input into features and plan the samples; may be called in any thread.

    Args:
        task: task of the model.
        graph: explanation graph of the model, open where the method needs it.
        request: options that have passed `check_request`.
        item: the input as the task has preprocessed it.
        given: the input itself: a text, an image file, or what else the task takes.
        name: the model, for messages: "model 'm'".
        truncate: as for the task.
        field: name of the input in error messages.
        max_image_pixels: as for the task.
        memory: as for the task.

    Returns:
        the plan.

    Raises:
        InvalidRequest: the input has no features or no such target, or `n_samples` is outside its limits.
    """
    method = next(known for known in METHODS if known == (request.method or DEFAULT_METHOD))
    seed, sampling = request.seed or 0, next((known for known in SAMPLING_METHODS if known == method), None)
    parts = task.parts(given, item, truncate=truncate, field=field, max_image_pixels=max_image_pixels, memory=memory)
    features: Words | Patches
    if isinstance(parts, ImageParts):
        text, picture = None, parts.picture
        features = Patches(parts.pixels_CHW, _patches_a_side(None if sampling else graph))
    else:
        text, picture = parts, None
        features = Words(parts.text, parts.ids, parts.spans)
        if not features.num_features:
            raise InvalidRequest(f"{field} has no words that could be removed")
    target = None if request.target is None else task.target_of(given, request.target, name)
    samples = None if sampling is None else plan_samples(sampling, features.num_features, request.n_samples, seed)
    num_steps = request.n_samples or DEFAULT_STEPS
    return ExplanationPlan(method, seed, features, samples, num_steps, request.selector, target, text, picture)


def _patches_a_side(graph: ExplainGraph | None) -> int:
    """Return the side of the grid: the tokens of a graph's image, or the default for sampling methods."""
    if graph is None:
        return PATCHES_A_SIDE
    assert graph.image_tokens is not None
    return math.isqrt(graph.image_tokens)
