"""Answers of committed models with their explanations, for the study of explanations.

    input ──> features (service.explanation.methods) ──> variants ──> served graph ──> values
          └─> rows at several alphas ──> explain.onnx ──> attention, gradients ──> weights of the same features

As in the service, the explained value is the probability of a classifier's answer, or the log probability of each token
of a translation. Gradients are those of a classifier's logit. ONNX Runtime runs the graphs here, in one
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

from export.conversion.comparison.explanation import Arrays, Row, at_alphas, batch_of, gauss_legendre
from export.conversion.model_folder.opening import generation_of, image_classification_of, open_folder
from export.onnx_graphs.translation import OnnxTranslator
from export.training.translation import translate
from model_store.folder import EXPLAIN, GRAPH, TOKENIZER, FolderError, Manifest
from service.explanation.methods.attention import rollout
from service.explanation.methods.features import Patches, Words
from service.explanation.methods.perturbation import Method, estimate, plan
from service.tasks.decoding.search import SearchOptions, longest_translation
from service.tasks.generation.explained_text import pieces_of
from service.tasks.text.classification import TextClassification
from service.tasks.translation import Translation

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

NUM_STEPS = 32  # steps of integrated gradients
MAX_ROWS = 32  # rows of one call


def session_of(path: Path) -> onnxruntime.InferenceSession:
    """Open a graph in one thread, so that the process's CPU time measures its cost."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Answer(ABC):
    """One input, and a model's answers to it and to its variants; answers are cached."""

    text = ""  # the answer
    names: Sequence[str] = ()  # names of the features, where they are words
    row: Row  # the input as explain.onnx takes it, at alpha 1
    feature_of_T: NDArray[np.int64]  # the feature of each input token; -1 for none

    def __init__(self, explain: onnxruntime.InferenceSession, num_features: int) -> None:
        self._explain, self.num_features = explain, num_features
        self.known: dict[bytes, Floats] = {}

    @abstractmethod
    def _ask(self, kept: Sequence[Bools]) -> list[Floats]:
        """Compute the values [K] of a few variants."""

    @abstractmethod
    def score_of(self, values_K: Floats) -> float:
        """Turn values into one score between 0 and 1 for the deletion and insertion curves."""

    @abstractmethod
    def attention_of_tokens(self, outputs: dict[str, NDArray[np.float32]]) -> Floats:
        """Compute how much attention the answer pays to each input token through all layers; [T]."""

    def values(self, kept_SM: Bools) -> Floats:
        """Compute the model's values for variants of the input; [S, K]."""
        missing = list({key: kept_M for kept_M in kept_SM if (key := kept_M.tobytes()) not in self.known}.values())
        for first in range(0, len(missing), MAX_ROWS):
            part = missing[first : first + MAX_ROWS]
            for kept_M, values_K in zip(part, self._ask(part), strict=True):
                self.known[kept_M.tobytes()] = values_K
        return np.stack([self.known[kept_M.tobytes()] for kept_M in kept_SM])

    def whole_and_empty(self) -> Floats:
        """Return the values with all features and with none; [2, K]."""
        return self.values(np.array([[True] * self.num_features, [False] * self.num_features]))

    def by_perturbation(self, method: Method, seed: int, n_samples: int | None = None) -> Floats:
        """Compute weights by removing features, as the service does; [M, K]."""
        made = plan(method, self.num_features, n_samples, seed)
        whole_K, empty_K = self.whole_and_empty()
        values_SK = self.values(made.kept_SM) if len(made.kept_SM) else np.zeros((0, len(whole_K)))
        return estimate(method, made, values_SK, whole_K, empty_K)

    def outputs(self) -> dict[str, NDArray[np.float32]]:
        """Return the outputs of explain.onnx for the input itself, without the batch dimension."""
        return {name: array[0] for name, array in self._run([self.row]).items()}

    def gradients(self) -> Floats:
        """Compute integrated gradients of the features; [M]."""
        return self.of_features(self.gradients_of_tokens(NUM_STEPS))

    def gradients_of_tokens(self, num_steps: int) -> Floats:
        """Compute integrated gradients of the input tokens; [T]."""
        alphas, weights = gauss_legendre(num_steps)
        total_T = np.zeros(len(self.feature_of_T))
        for first in range(0, num_steps, MAX_ROWS):
            part = slice(first, first + MAX_ROWS)
            total_T += weights[part] @ self._run(at_alphas(self.row, alphas[part]))["attribution"].astype(np.float64)
        return total_T

    def of_features(self, numbers_T: Floats) -> Floats:
        """Sum token values by feature; [M]. Tokens without a feature are left out."""
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
        """Build a variant as the task collates it."""

    def _ask(self, kept: Sequence[Bools]) -> list[Floats]:
        logits_BC = self._model.logits([self._item(kept_M) for kept_M in kept])
        return [np.array([self._model.task.probability(logits_C, self.target)]) for logits_C in logits_BC]

    def score_of(self, values_K: Floats) -> float:
        """Return the probability itself."""
        return float(values_K[0])

    def attention_of_tokens(self, outputs: dict[str, NDArray[np.float32]]) -> Floats:
        """Compute attention rollout with equal weights in the last layer, because no output has the pooling weights."""
        found: Floats = rollout(outputs["attention"]).mean(axis=0)
        return found


class TextAnswer(ClassifierAnswer):
    """The answer to a text; features are words."""

    def __init__(self, model: "TextModel", text: str) -> None:
        tokens = model.task.preprocess(text, truncate=False, field="text")
        self.ids, self.spans = tokens.ids, model.task.spans(text, truncate=False)
        self.given = text
        self.places = Words(text, range(len(self.ids)), self.spans)
        super().__init__(model, self.places.num_features, tokens)
        self.names = [word.text for word in self.places.words]
        self.feature_of_T = features_of_tokens(self.places, len(self.ids))
        ids = np.array(self.ids)
        feeds: Arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "target": np.array(self.target)}
        self.row = Row(0, feeds | {"alpha": np.array(1, dtype=np.float32)})

    def _item(self, kept_M: Bools) -> Any:
        assert isinstance(self._model, TextModel)
        return self._model.task.part([self.ids[place] for place in self.places.part(kept_M)])


class ImageAnswer(ClassifierAnswer):
    """The answer to an image; features are the patches of the network's token grid."""

    def __init__(self, model: "ImageModel", levels_HWC: NDArray[np.uint8]) -> None:
        pixels_CHW = model.task.normalised(levels_HWC)
        self.patches = Patches(pixels_CHW)
        super().__init__(model, self.patches.num_features, pixels_CHW)
        self.feature_of_T = np.arange(self.num_features)
        feeds: Arrays = {"pixel_values": pixels_CHW, "target": np.array(self.target)}
        self.row = Row(0, feeds | {"alpha": np.array(1, dtype=np.float32)})

    def _item(self, kept_M: Bools) -> Any:
        return self.patches.part(kept_M)


class TranslationAnswer(Answer):
    """The translation of a text, with each token's log probability; features are words of the source."""

    def __init__(self, model: "TranslationModel", text: str, target_ids: list[int]) -> None:
        self.ids, self.spans = model.source_ids(text), model.task.spans(text, truncate=False)
        self.given = text
        self.places = Words(text, range(len(self.ids)), self.spans)
        super().__init__(model.explain, self.places.num_features)
        self.target_ids = target_ids
        self.pieces = pieces_of(model.task, target_ids)
        self.ends = model.ends(target_ids)  # whether the translation ends with [EOS]
        self.text = "".join(self.pieces[:-1] if self.ends else self.pieces)
        self.names = [word.text for word in self.places.words]
        self.feature_of_T = features_of_tokens(self.places, len(self.ids))
        self.row = self._row(self.ids)

    def _row(self, source: Sequence[int]) -> Row:
        source_ids, target_ids = np.array(source, dtype=np.int64), np.array(self.target_ids)
        feeds: Arrays = {"source_ids": source_ids, "source_mask": np.ones_like(source_ids)}
        feeds |= {"target_ids": target_ids, "target_mask": np.ones_like(target_ids)}
        return Row(0, feeds | {"alpha": np.array(1, dtype=np.float32)})

    def _ask(self, kept: Sequence[Bools]) -> list[Floats]:
        """Ask explain.onnx at alpha 1 for all tokens at once; the served graphs would need a step per token."""
        rows = [self._row([self.ids[place] for place in self.places.part(kept_M)]) for kept_M in kept]
        return list(self._explain.run(["log_probabilities"], batch_of(rows))[0].astype(np.float64))

    def score_of(self, values_K: Floats) -> float:
        """Return the mean probability of a token, as the service does."""
        return math.exp(values_K.mean())

    def attention_of_tokens(self, outputs: dict[str, NDArray[np.float32]]) -> Floats:
        """Combine cross-attention, averaged over layers, heads and target tokens, with the encoder's rollout."""
        to_source_S = outputs["cross_attention"].astype(np.float64).mean(axis=(0, 1, 2))
        found: Floats = to_source_S @ rollout(outputs["encoder_attention"])
        return found


def features_of_tokens(places: Words, num_tokens: int) -> NDArray[np.int64]:
    """Return the feature that each token belongs to; -1 for tokens that are never removed."""
    feature_of_T = np.full(num_tokens, -1)
    for feature, gone_M in enumerate(np.eye(places.num_features, dtype=np.bool_)):
        feature_of_T[sorted(set(range(num_tokens)) - set(places.part(~gone_M)))] = feature
    return feature_of_T


class TextModel:
    """A text classifier of the model store."""

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
        """Compute the logits of tokenized texts; [C] each."""
        return list(self.served.run(["logits"], self.task.collate(items))[0])

    def answer(self, text: str) -> TextAnswer:
        """Answer a text."""
        return TextAnswer(self, text)


class ImageModel:
    """An image classifier of the model store."""

    def __init__(self, folder: Path) -> None:
        self.manifest = manifest_of(folder)
        self.served, self.explain = session_of(folder / GRAPH), session_of(folder / EXPLAIN)
        self.task = image_classification_of(folder, self.manifest)

    def logits(self, items: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Compute the logits of pixels [C, H, W]; [C] each."""
        return list(self.served.run(["logits"], {self.manifest.inputs[0].name: np.stack(items)})[0])

    def answer(self, levels_HWC: NDArray[np.uint8]) -> ImageAnswer:
        """Answer an image of the model's own size, levels from 0 to 255."""
        return ImageAnswer(self, levels_HWC)


class TranslationModel:
    """A translation model of the model store."""

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
        """Tokenize a text."""
        return self.task.preprocess(text, truncate=False, field="text").ids

    def answer(self, text: str) -> TranslationAnswer:
        """Translate a text greedily, and return the answer to explain."""
        ids = self.source_ids(text)
        limit = longest_translation(len(ids), self._max_tokens)
        options = [SearchOptions(max_new_tokens=limit)]
        (found,) = translate(self._translator, [ids], options, bos_id=self._bos_id, eos_id=self._eos_id)
        return TranslationAnswer(self, text, found.ids if len(found.ids) == limit else [*found.ids, self._eos_id])

    def ends(self, target_ids: Sequence[int]) -> bool:
        """Whether the translation ends with the end-of-sentence token."""
        return bool(target_ids[-1] == self._eos_id)


def manifest_of(folder: Path) -> Manifest:
    """Read the manifest of a complete model folder.

    Raises:
        FolderError: the folder is incomplete or has no manifest.
    """
    opened = open_folder(folder)
    if opened.manifest is None or not (folder / EXPLAIN).is_file():
        raise FolderError(f"{folder} has no {EXPLAIN}: only models with one can be studied")
    return opened.manifest
