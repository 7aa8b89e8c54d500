"""The options of an explanation that clients choose, and its result.

Shapes: M features, K values of one answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from service.explanation.graph_methods import AttentionMap, AttentionSelector
from service.explanation.methods.features import Word
from service.explanation.methods.fidelity import Fidelity
from service.explanation.methods.perturbation import METHODS as SAMPLING_METHODS

Method = Literal["occlusion", "lime", "shap", "attention", "gradients"]
# Methods for models whose folder has `explain.onnx`.
GRAPH_METHODS: tuple[Method, ...] = ("attention", "gradients")
METHODS: tuple[Method, ...] = (*SAMPLING_METHODS, *GRAPH_METHODS)
DEFAULT_METHOD: Method = "occlusion"
MAX_SEED = 2**63 - 1  # the largest integer that a parameter over gRPC can be


class ExplainRequest(NamedTuple):
    """Options of an explanation; None leaves the choice to the server."""

    method: str | None = None
    target: str | None = None  # class whose probability is explained; None: the predicted class
    n_samples: int | None = None  # number of steps for `gradients`
    seed: int | None = None
    selector: AttentionSelector = AttentionSelector()  # used by `attention` only


class Token(NamedTuple):
    """A token of a text and its weight; a special token has its name as text and an empty span."""

    text: str
    start: int
    end: int
    weight: float
    feature: int | None  # index of the word that the token belongs to


@dataclass(frozen=True, slots=True)
class Explanation:
    """A weight for each part of an input: how much it adds to `score`.

    A text has `words` and their weights [M]. A translation also has the text of each of its tokens and `influence`
    [M, K], the weights for each token, whose rows sum to the weights. An image has `patches` [rows, columns] and an
    overlay (PNG). Graph methods weigh `tokens`, and a word gets the sum of its tokens. Weights of `attention` sum to
    one (for a translation, to the number of its tokens); weights of `gradients` sum to the logit of the class, less
    the logit of the empty input.
    """

    method: Method
    target: str  # the class, or the translation
    score: float  # probability of the class, or log probability of the translation
    fidelity: Fidelity
    words: Sequence[Word] = ()
    weights: Sequence[float] = ()
    target_tokens: Sequence[str] | None = None
    influence: list[list[float]] | None = None
    patches: list[list[float]] | None = None
    overlay: bytes | None = None
    tokens: Sequence[Token] | None = None
    attention: AttentionMap | None = None
