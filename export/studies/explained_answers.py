"""An answer of a committed model, ready to be taken apart: what the study of explanations asks of the graphs.

    input ──> features (service.explanation.methods) ──> variants ──> served graph ──> values
          └─> rows at several alphas ──> explain.onnx ──> attention, gradients ──> weights of the same features

What is explained is what the service explains: of a classifier the probability of the answer, of a translation the log
probability of its tokens. The gradients are those of a classifier's logit. ONNX Runtime runs the graphs here, in one
thread; no server is needed.

Shapes: S samples, M features, K values of one answer, T tokens, L layers, H heads.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from export.conversion.explanation_graph import (
    Row,
    at_alphas,
    batch_of,
    gauss_legendre,
    generation_of,
    image_task,
    open_folder,
)
from export.onnx_graphs.translation import OnnxTranslator
from export.training.translation import translate
from model_store.folder import EXPLAIN, GRAPH, TOKENIZER, FolderError, Manifest
from service.explanation.methods.attention import rollout
from service.explanation.methods.features import Patches, Words
from service.explanation.methods.perturbation import Method, estimate, plan
from service.tasks.text_classification import TextClassification
from service.tasks.translation import Translation
from service.tasks.translation_search import SearchOptions, longest_translation

Bools, Floats = NDArray[np.bool_], NDArray[np.float64]

NUM_STEPS = 32  # of integrated gradients
MAX_ROWS = 32  # of a call


def session_of(path: Path) -> onnxruntime.InferenceSession:
    """A graph in one thread, so that what it costs is told by the clock of the process."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Answer(ABC):
    """One input, what a model says to it and to parts of it; each part is asked for once."""

    text = ""  # the answer
    names: Sequence[str] = ()  # of the features, where they are words
    row: Row  # the input as explain.onnx takes it, at alpha 1
    feature_of_T: NDArray[np.int64]  # of each token of the input; -1 for none

    def __init__(self, explain: onnxruntime.InferenceSession, num_features: int) -> None:
        self._explain, self.num_features = explain, num_features
        self.known: dict[bytes, Floats] = {}

    @abstractmethod
    def _ask(self, kept: Sequence[Bools]) -> list[Floats]:
        """The values [K] that a few variants have."""

    @abstractmethod
    def share_of(self, values_K: Floats) -> float:
        """Values to a number between 0 and 1, for the curves."""

    @abstractmethod
    def attention_of_tokens(self, outputs: dict[str, NDArray[np.float32]]) -> Floats:
        """How much attention the answer pays to each token of the input, through all layers, [T]."""

    def values(self, kept_SM: Bools) -> Floats:
        """What the model says to variants, [S, K]."""
        missing = list({key: kept_M for kept_M in kept_SM if (key := kept_M.tobytes()) not in self.known}.values())
        for first in range(0, len(missing), MAX_ROWS):
            part = missing[first : first + MAX_ROWS]
            for kept_M, values_K in zip(part, self._ask(part), strict=True):
                self.known[kept_M.tobytes()] = values_K
        return np.stack([self.known[kept_M.tobytes()] for kept_M in kept_SM])

    def whole_and_empty(self) -> Floats:
        """The values with all features and without any, [2, K]."""
        return self.values(np.array([[True] * self.num_features, [False] * self.num_features]))

    def by_perturbation(self, method: Method, seed: int, n_samples: int | None = None) -> Floats:
        """Weights by taking features away, as the service computes them, [M, K]."""
        made = plan(method, self.num_features, n_samples, seed)
        whole_K, empty_K = self.whole_and_empty()
        values_SK = self.values(made.kept_SM) if len(made.kept_SM) else np.zeros((0, len(whole_K)))
        return estimate(method, made, values_SK, whole_K, empty_K)

    def outputs(self) -> dict[str, NDArray[np.float32]]:
        """What explain.onnx says of the input itself, without the batch."""
        return {name: array[0] for name, array in self._run([self.row]).items()}

    def gradients(self) -> Floats:
        """Integrated gradients, [M]."""
        return self.of_features(self.gradients_of_tokens(NUM_STEPS))

    def gradients_of_tokens(self, num_steps: int) -> Floats:
        """The same of each token of the input, [T]."""
        alphas, weights = gauss_legendre(num_steps)
        total_T = np.zeros(len(self.feature_of_T))
        for first in range(0, num_steps, MAX_ROWS):
            part = slice(first, first + MAX_ROWS)
            total_T += weights[part] @ self._run(at_alphas(self.row, alphas[part]))["attribution"].astype(np.float64)
        return total_T

    def of_features(self, numbers_T: Floats) -> Floats:
        """Sums over the tokens of each feature, [M]; tokens of none are left out."""
        found_M = np.zeros(self.num_features)
        np.add.at(found_M, self.feature_of_T[self.feature_of_T >= 0], numbers_T[self.feature_of_T >= 0])
        return found_M

    def _run(self, rows: Sequence[Row]) -> dict[str, NDArray[np.float32]]:
        names = [output.name for output in self._explain.get_outputs()]
        return dict(zip(names, self._explain.run(names, batch_of(rows)), strict=True))


class ClassifierAnswer(Answer):
    """The class that a classifier answers, and its probability."""

    def __init__(self, model: "TextModel | ImageModel", num_features: int, item: Any) -> None:
        super().__init__(model.explain, num_features)
        self._model = model
        (logits_C,) = model.logits([item])
        self.target = int(logits_C.argmax())
        self.text = model.task.labels[self.target]

    @abstractmethod
    def _item(self, kept_M: Bools) -> Any:
        """A variant as the task collates it."""

    def _ask(self, kept: Sequence[Bools]) -> list[Floats]:
        logits_BC = self._model.logits([self._item(kept_M) for kept_M in kept])
        return [np.array([self._model.task.probability(logits_C, self.target)]) for logits_C in logits_BC]

    def share_of(self, values_K: Floats) -> float:
        """The probability itself."""
        return float(values_K[0])

    def attention_of_tokens(self, outputs: dict[str, NDArray[np.float32]]) -> Floats:
        """Rollout, all tokens of the last layer alike; the image model's own weights of them are in no output."""
        found: Floats = rollout(outputs["attention"]).mean(axis=0)
        return found


class TextAnswer(ClassifierAnswer):
    """That of a text; features are words."""

    def __init__(self, model: "TextModel", text: str) -> None:
        tokens = model.task.preprocess(text, truncate=False, field="text")
        self.ids, self.spans = tokens.ids, model.task.spans(text, truncate=False)
        self.given = text
        self.places = Words(text, range(len(self.ids)), self.spans)
        super().__init__(model, self.places.num_features, tokens)
        self.names = [word.text for word in self.places.words]
        self.feature_of_T = features_of_tokens(self.places, len(self.ids))
        ids = np.array(self.ids)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "target": np.int64(self.target)}
        self.row = Row(0, feeds | {"alpha": np.float32(1)})

    def _item(self, kept_M: Bools) -> Any:
        assert isinstance(self._model, TextModel)
        return self._model.task.part([self.ids[place] for place in self.places.ids_of(kept_M)])


class ImageAnswer(ClassifierAnswer):
    """That of an image; features are patches of the grid that the network's tokens are, too."""

    def __init__(self, model: "ImageModel", levels_HWC: NDArray[np.uint8]) -> None:
        pixels_CHW = model.task.normalised(levels_HWC)
        self.patches = Patches(pixels_CHW)
        super().__init__(model, self.patches.num_features, pixels_CHW)
        self.feature_of_T = np.arange(self.num_features)
        feeds = {"pixel_values": pixels_CHW, "target": np.int64(self.target)}
        self.row = Row(0, feeds | {"alpha": np.float32(1)})

    def _item(self, kept_M: Bools) -> Any:
        return self.patches.pixels_of(kept_M)


class TranslationAnswer(Answer):
    """The translation of a text, and the log probability of each of its tokens; features are words of the source."""

    def __init__(self, model: "TranslationModel", text: str, target_ids: list[int]) -> None:
        self.ids, self.spans = model.source_ids(text), model.task.spans(text, truncate=False)
        self.given = text
        self.places = Words(text, range(len(self.ids)), self.spans)
        super().__init__(model.explain, self.places.num_features)
        self.target_ids = target_ids
        self.pieces = model.task.pieces_of(target_ids)
        self.ends = model.ends(target_ids)  # with the end of the sentence
        self.text = "".join(self.pieces[:-1] if self.ends else self.pieces)
        self.names = [word.text for word in self.places.words]
        self.feature_of_T = features_of_tokens(self.places, len(self.ids))
        self.row = self._row(self.ids)

    def _row(self, source: Sequence[int]) -> Row:
        source_ids, target_ids = np.array(source, dtype=np.int64), np.array(self.target_ids)
        feeds: dict[str, Any] = {"source_ids": source_ids, "source_mask": np.ones_like(source_ids)}
        feeds |= {"target_ids": target_ids, "target_mask": np.ones_like(target_ids)}
        return Row(0, feeds | {"alpha": np.float32(1)})

    def _ask(self, kept: Sequence[Bools]) -> list[Floats]:
        """By explain.onnx at alpha 1, all tokens at once; the served graphs give the same, a step for each token."""
        rows = [self._row([self.ids[place] for place in self.places.ids_of(kept_M)]) for kept_M in kept]
        return list(self._explain.run(["log_probabilities"], batch_of(rows))[0].astype(np.float64))

    def share_of(self, values_K: Floats) -> float:
        """The mean probability of a token, as in the service."""
        return math.exp(values_K.mean())

    def attention_of_tokens(self, outputs: dict[str, NDArray[np.float32]]) -> Floats:
        """The attention to the source, mean of layers, heads and target tokens, through the encoder's rollout."""
        to_source_S = outputs["cross_attention"].astype(np.float64).mean(axis=(0, 1, 2))
        found: Floats = to_source_S @ rollout(outputs["encoder_attention"])
        return found


def features_of_tokens(places: Words, num_tokens: int) -> NDArray[np.int64]:
    """The feature of each token, by which tokens leave with it; -1 for those that always stay."""
    feature_of_T = np.full(num_tokens, -1)
    for feature, gone_M in enumerate(np.eye(places.num_features, dtype=np.bool_)):
        feature_of_T[sorted(set(range(num_tokens)) - set(places.ids_of(~gone_M)))] = feature
    return feature_of_T


class TextModel:
    """A text classifier out of the store."""

    def __init__(self, folder: Path) -> None:
        self.manifest = manifest_of(folder)
        self.served, self.explain = session_of(folder / GRAPH), session_of(folder / EXPLAIN)
        self.task = TextClassification(
            (folder / TOKENIZER).read_text(),
            labels=self.manifest.labels,
            max_tokens=self.manifest.limits.max_tokens or 0,
            pad_id=json.loads((folder / "config.json").read_text())["pad_token_id"],
            graph_inputs=[each.name for each in self.manifest.inputs],
        )

    def logits(self, items: Sequence[Any]) -> list[NDArray[np.float32]]:
        """Of tokens that the task has made, [C] each."""
        return list(self.served.run(["logits"], self.task.collate(items))[0])

    def answer(self, text: str) -> TextAnswer:
        """What it says to a text."""
        return TextAnswer(self, text)


class ImageModel:
    """An image classifier out of the store."""

    def __init__(self, folder: Path) -> None:
        self.manifest = manifest_of(folder)
        self.served, self.explain = session_of(folder / GRAPH), session_of(folder / EXPLAIN)
        self.task = image_task(folder, self.manifest)

    def logits(self, items: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Of pixels [C, H, W], [C] each."""
        return list(self.served.run(["logits"], {self.manifest.inputs[0].name: np.stack(items)})[0])

    def answer(self, levels_HWC: NDArray[np.uint8]) -> ImageAnswer:
        """What it says to an image of its own size, levels from 0 to 255."""
        return ImageAnswer(self, levels_HWC)


class TranslationModel:
    """A translation model out of the store."""

    def __init__(self, folder: Path) -> None:
        self.manifest = manifest_of(folder)
        self.explain, self._translator = session_of(folder / EXPLAIN), OnnxTranslator(folder)
        config, generation = json.loads((folder / "config.json").read_text()), generation_of(folder)
        self._bos_id, self._eos_id = generation["decoder_start_token_id"], generation["eos_token_id"]
        self._max_tokens = self.manifest.limits.max_tokens or 0
        self.task = Translation(
            (folder / TOKENIZER).read_text(),
            max_tokens=self._max_tokens,
            bos_id=self._bos_id,
            eos_id=self._eos_id,
            source_language=config["source_language"],
            target_language=config["target_language"],
        )

    def source_ids(self, text: str) -> list[int]:
        """A text's tokens."""
        return self.task.preprocess(text, truncate=False, field="text").ids

    def answer(self, text: str) -> TranslationAnswer:
        """A text and its greedy translation."""
        ids = self.source_ids(text)
        limit = longest_translation(len(ids), self._max_tokens)
        options = [SearchOptions(max_new_tokens=limit)]
        (found,) = translate(self._translator, [ids], options, bos_id=self._bos_id, eos_id=self._eos_id)
        return TranslationAnswer(self, text, found.ids if len(found.ids) == limit else [*found.ids, self._eos_id])

    def ends(self, target_ids: Sequence[int]) -> bool:
        """Whether a translation has the end of the sentence."""
        return target_ids[-1] == self._eos_id


def manifest_of(folder: Path) -> Manifest:
    """That of a folder that is whole.

    Raises:
        FolderError: it is not, or has no manifest.
    """
    opened = open_folder(folder)
    if opened.manifest is None or not (folder / EXPLAIN).is_file():
        raise FolderError(f"{folder} has no {EXPLAIN}: only models with one can be studied")
    return opened.manifest
