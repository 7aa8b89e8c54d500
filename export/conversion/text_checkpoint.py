"""Loads text encoders of Hugging Face checkpoints as sources for conversion: classifiers and embedding models.

A checkpoint of sentence-transformers is read with its own layers (`modules.json`).

Shapes: B rows, T tokens, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import normalizers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from export.conversion.checkpoints.fused_attention import with_fused_attention
from export.conversion.checkpoints.onnx_folder import GivenGraph, has_weights, provenance_of_graph, split_graph
from export.conversion.checkpoints.reading import (
    CONFIG,
    LoadRefused,
    check_same_tokens,
    check_vocabulary,
    labels_of,
    load_fast_tokenizer,
    load_weights,
    provenance_of_loaded,
    read_config,
    read_object,
    reading,
)
from export.conversion.checkpoints.sentence_pieces import remark_on_pieces
from export.conversion.checkpoints.sentence_transformers import SentenceLayers, read_sentence_layers
from export.conversion.checkpoints.text_families import NO_LIMIT, TEXT_FAMILIES, TextFamily
from export.conversion.model_source import Source
from export.conversion.text_source import EmbeddingSource, TextClassifierSource, optimized_as_bert
from export.networks.sentence_embedding import SentenceEmbedding
from model_store.folder import TASK_SETTINGS
from service.tasks.classification import ClassifierSettings, Problem
from service.tasks.text.embeddings import EmbeddingSettings

PROBLEMS: tuple[Problem, ...] = ("single_label_classification", "multi_label_classification", "regression")


@dataclass(frozen=True)
class TextCheckpoint:
    """A checkpoint that was read whole: its network, tokenizer and configuration.

    Attributes:
        document: the contents of `config.json`.
        config: the configuration of `transformers`.
        model: the network of `transformers`; None where the checkpoint has only an ONNX graph.
        tokenizer: the tokenizer of `transformers`.
        arguments: arguments of every source of this checkpoint, all but its networks.
    """

    document: dict[str, Any]
    config: Any
    model: Any
    tokenizer: Any
    arguments: dict[str, Any]

    def networks(self, wrap: Callable[[Any], nn.Module], given: GivenGraph | None) -> dict[str, Any]:
        """Return the networks of a source as its arguments.

        Args:
            wrap: puts the layers of the task around a model of `transformers`.
            given: the graph to serve; None where one is exported.

        Raises:
            LoadRefused: the given graph lacks an input.
        """
        if given is None:
            return {"module": wrap(self.model), "for_export": lambda: wrap(with_fused_attention(self.model))}
        if missing := set(self.arguments["input_names"]) - set(given.input_names):
            raise LoadRefused(f"{given.path.name} lacks inputs that the tokenizer makes: {', '.join(sorted(missing))}")
        module = given if self.model is None else wrap(self.model)
        return {"module": module, "for_export": lambda: given, "given": given, "input_names": given.input_names}


def read_text_checkpoint(
    name_or_path: str,
    auto_class: Any,
    folder: str = "",
    max_tokens: int | None = None,
    *,
    lower_case: bool = False,
    given: Path | None = None,
) -> TextCheckpoint:
    """Read a text encoder from a saved folder or a hub id.

    Args:
        name_or_path: the folder, or the hub id.
        auto_class: the class of `transformers` that has the head of the task.
        folder: the folder of the network in that of the checkpoint; empty where it is the same.
        max_tokens: a limit of the checkpoint below that of the network.
        lower_case: whether texts are converted to lower case before they are tokenized.
        given: an ONNX graph of the checkpoint that is served as it is; PyTorch weights may then be missing.

    Raises:
        LoadRefused: not a complete text encoder of a family of `TEXT_FAMILIES` with its own tokenizer.
    """
    place = f"{name_or_path}/{folder}" if folder else name_or_path
    document = read_config(place, TEXT_FAMILIES)
    labels_of(document, 0)
    if given is not None and not has_weights(place):
        with reading(f"{CONFIG} cannot be read"):
            config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        model, num_rows, said = None, config.vocab_size, provenance_of_graph(name_or_path, config, given)
    else:
        model, said = load_weights(auto_class, place)
        config, num_rows = model.config, model.get_input_embeddings().num_embeddings
        said = provenance_of_loaded(name_or_path, model) | said
    tokenizer = load_fast_tokenizer(place)
    family = TEXT_FAMILIES[config.model_type]
    if config.pad_token_id is None:
        raise LoadRefused(f"{CONFIG} has no pad_token_id")
    check_vocabulary(tokenizer.get_vocab(), num_rows)
    limit = min(max_tokens or NO_LIMIT, _max_tokens(family, config, tokenizer))
    arguments = {
        "skips_padding": False,
        "input_names": family.input_names(config, tuple(tokenizer.model_input_names)),
        "tokenizer_json": _tokenizer_json(tokenizer, limit, lower_case=lower_case),
        "max_tokens": limit,
        "pad_id": config.pad_token_id,
        "optimized_as": optimized_as_bert(config.num_attention_heads, config.hidden_size) if family.optimized else None,
        "model_type": config.model_type,
        "cuts_left": tokenizer.truncation_side == "left",
        "provenance": said | remark_on_pieces(place, tokenizer),
    }
    return TextCheckpoint(document, config, model, tokenizer, arguments)


def classifier_of_hugging_face(source: str) -> TextClassifierSource:
    """Load a text classifier: of one label, of several labels, or of numbers.

    Args:
        source: the folder, the hub id, or an ONNX graph of a folder.

    Raises:
        LoadRefused: as `read_text_checkpoint`, or a problem that is not known.
    """
    name_or_path, path = split_graph(source)
    checkpoint = read_text_checkpoint(name_or_path, AutoModelForSequenceClassification, given=path)
    num_labels = checkpoint.config.num_labels
    given = None if path is None else GivenGraph(path, TextClassifierSource.output_name)
    classifier = TextClassifierSource(
        labels=labels_of(checkpoint.document, num_labels),
        settings=saved_settings(name_or_path) or classifier_settings(checkpoint.document, num_labels),
        **checkpoint.arguments | checkpoint.networks(Positional, given),
    )
    _check(classifier, checkpoint)
    return classifier


def saved_settings(name_or_path: str) -> ClassifierSettings | None:
    """Return the settings that a classifier of several labels was saved with here (`task.json`), with its thresholds.

    Raises:
        LoadRefused: the file has other fields.
    """
    document = read_object(name_or_path, TASK_SETTINGS)
    if not document.get("thresholds"):
        return None
    try:
        return msgspec.convert(document, ClassifierSettings)
    except msgspec.ValidationError as error:
        raise LoadRefused(f"{TASK_SETTINGS}: {error}") from error


def classifier_settings(document: dict[str, Any], num_labels: int) -> ClassifierSettings | None:
    """Return what the logits of a classifier are, as the pipelines of `transformers` understand its `config.json`.

    Returns:
        the settings; None for a classifier of one label.

    Raises:
        LoadRefused: the problem is not known, or has too few labels.
    """
    given = document.get("problem_type") or (PROBLEMS[0] if num_labels > 1 else PROBLEMS[1])
    problem = next((each for each in PROBLEMS if each == given), None)
    if problem is None:
        raise LoadRefused(f"{CONFIG}: problem_type {given!r} is not one of {', '.join(PROBLEMS)}")
    if problem == "single_label_classification":
        if num_labels < 2:
            raise LoadRefused(f"{CONFIG}: problem_type {given!r} with {num_labels} labels; it needs at least 2")
        return None
    return ClassifierSettings(problem=problem)


def embedding_of_hugging_face(source: str) -> EmbeddingSource:
    """Load a model that embeds texts, with the layers of sentence-transformers where the checkpoint has them.

    Args:
        source: the folder, the hub id, or an ONNX graph of a folder.

    Raises:
        LoadRefused: as `read_text_checkpoint`, or a layer that is not offered.
    """
    name_or_path, path = split_graph(source)
    layers = read_sentence_layers(name_or_path)
    checkpoint = read_text_checkpoint(
        name_or_path, AutoModel, layers.folder, layers.max_tokens, lower_case=layers.lower_case, given=path
    )
    given = None if path is None else GivenGraph(path, EmbeddingSource.output_name, layers.poolings)

    def wrap(model: Any) -> nn.Module:
        return SentenceEmbedding(model, layers.poolings, layers.dense)

    arguments = checkpoint.arguments | checkpoint.networks(wrap, given)
    embedding = EmbeddingSource(
        settings=EmbeddingSettings(
            dimensions=_dimensions(layers, checkpoint.config.hidden_size),
            normalize=layers.normalize,
            prompts=layers.prompts,
            default_prompt=layers.default_prompt,
            similarity=layers.similarity,
        ),
        **arguments | {"provenance": arguments["provenance"] | layers.provenance()},
    )
    _check(embedding, checkpoint)
    return embedding


def _dimensions(layers: SentenceLayers, width: int) -> int:
    """Return the elements of a text's vector."""
    linear = [layer for layer in layers.dense if isinstance(layer, nn.Linear)]
    return linear[-1].out_features if linear else width * len(layers.poolings)


def _check(source: Any, checkpoint: TextCheckpoint) -> None:
    """Prove that texts are tokenized as by `transformers`, and compute a few of them."""
    with reading("the tokenizer cannot be served"):
        check_same_tokens(source.task, checkpoint.tokenizer, source.max_tokens)
    check_computes(source)


def check_computes(source: Source) -> None:
    """Compute a few golden examples with the loaded network.

    Raises:
        LoadRefused: PyTorch cannot compute them, or the answers are no numbers.
    """
    inputs = source.golden_inputs()[:3]
    if not inputs:
        raise LoadRefused("the model takes so few tokens that no golden example fits")
    with reading("PyTorch cannot compute the loaded network"):
        results = source.outputs(source.module, inputs)
    if (found := results[0].shape[-1]) != (expected := source.output_shape[-1]):
        raise LoadRefused(f"the network gives {found} numbers a text, {expected} are expected ({source.output_name})")
    if not all(np.isfinite(result).all() for result in results):
        raise LoadRefused("the network's answers are not finite numbers: its weights are damaged")


def _tokenizer_json(tokenizer: Any, max_tokens: int, *, lower_case: bool) -> str:
    """Write `tokenizer.json`, including the side on which long texts are truncated."""
    backend = tokenizer.backend_tokenizer
    if lower_case:
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    backend.enable_truncation(max_tokens, direction=tokenizer.truncation_side)
    return str(backend.to_str())


def _max_tokens(family: TextFamily, config: Any, tokenizer: Any) -> int:
    """Return the longest input in tokens.

    Raises:
        LoadRefused: it is so short that no text fits.
    """
    max_tokens = family.max_tokens(config, tokenizer.model_max_length)
    if max_tokens <= tokenizer.num_special_tokens_to_add():
        raise LoadRefused(
            f"the model takes {max_tokens} tokens (max_position_embeddings, model_max_length): no text fits"
        )
    return max_tokens


class Positional(nn.Module):
    """A Hugging Face model that takes tensors in a fixed order and returns only its logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Classify inputs, int64 [B, T] each; return logits [B, C]."""
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **more).logits
        return logits
