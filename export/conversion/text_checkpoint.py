"""Loads text encoders of Hugging Face checkpoints as sources for conversion: classifiers and embedding models.

A checkpoint of sentence-transformers is read with its own layers (`modules.json`).

Shapes: B rows, T tokens, H heads, K width of a head, C classes.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from tokenizers import normalizers
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModel,
    AutoModelForSequenceClassification,
)

from export.conversion.checkpoints.reading import (
    CONFIG,
    LoadRefused,
    check_same_tokens,
    check_vocabulary,
    labels_of,
    load_tokenizer,
    load_weights,
    provenance_of_loaded,
    read_config,
    read_object,
    reading,
)
from export.conversion.checkpoints.sentence_transformers import SentenceLayers, read_sentence_layers
from export.conversion.model_source import Source
from export.conversion.rows_source import RowsSource, Wrap
from export.conversion.text_source import EmbeddingSource, TextClassifierSource, optimized_as_bert
from export.networks.sentence_embedding import SentenceEmbedding
from export.networks.transformer import fused_attention, padding_bias
from model_store.folder import TASK_SETTINGS
from service.tasks.classification import ClassifierSettings, Problem
from service.tasks.text.embeddings import EmbeddingSettings
from service.tasks.text.rows import RowsTask

# The graph's inputs by model type, for the families that conversion is tested with.
INPUTS_OF = {
    "bert": ("input_ids", "attention_mask", "token_type_ids"),
    "distilbert": ("input_ids", "attention_mask"),
    "roberta": ("input_ids", "attention_mask"),
    "xlm-roberta": ("input_ids", "attention_mask"),
}
FUSED = "heed_fused"
PROBLEMS: tuple[Problem, ...] = ("single_label_classification", "multi_label_classification", "regression")


@dataclass(frozen=True)
class TextCheckpoint:
    """A checkpoint that was read whole: its network, tokenizer and configuration.

    Attributes:
        document: the contents of `config.json`.
        model: the network of `transformers`.
        tokenizer: the tokenizer of `transformers`.
        arguments: arguments of every source of this checkpoint, all but its networks.
    """

    document: dict[str, Any]
    model: Any
    tokenizer: Any
    arguments: dict[str, Any]


def read_text_checkpoint(
    name_or_path: str, auto_class: Any, folder: str = "", max_tokens: int | None = None, *, lower_case: bool = False
) -> TextCheckpoint:
    """Read a text encoder from a saved folder or a hub id.

    Args:
        name_or_path: the folder, or the hub id.
        auto_class: the class of `transformers` that has the head of the task.
        folder: the folder of the network in that of the checkpoint; empty where it is the same.
        max_tokens: a limit of the checkpoint below that of the network.
        lower_case: whether texts are converted to lower case before they are tokenized.

    Raises:
        LoadRefused: not a complete text encoder of a known family with its own fast tokenizer.
    """
    place = f"{name_or_path}/{folder}" if folder else name_or_path
    document = read_config(place, INPUTS_OF)
    labels_of(document, 0)
    model, said = load_weights(auto_class, place)
    tokenizer = load_tokenizer(place)
    config = model.config
    if not tokenizer.is_fast:
        raise LoadRefused("the tokenizer has no fast form (tokenizer.json)")
    if config.pad_token_id is None:
        raise LoadRefused(f"{CONFIG} has no pad_token_id")
    check_vocabulary(tokenizer.get_vocab(), model.get_input_embeddings().num_embeddings)
    limit = min(max_tokens or tokenizer.model_max_length, _max_tokens(config, tokenizer))
    arguments = {
        "skips_padding": False,
        "input_names": INPUTS_OF[config.model_type],
        "tokenizer_json": _tokenizer_json(tokenizer, limit, lower_case=lower_case),
        "max_tokens": limit,
        "pad_id": config.pad_token_id,
        "optimized_as": optimized_as_bert(config.num_attention_heads, config.hidden_size),
        "model_type": config.model_type,
        "cuts_left": tokenizer.truncation_side == "left",
        "provenance": provenance_of_loaded(name_or_path, model) | said,
    }
    return TextCheckpoint(document, model, tokenizer, arguments)


def classifier_of_hugging_face(name_or_path: str) -> TextClassifierSource:
    """Load a text classifier: of one label, of several labels, or of numbers.

    Raises:
        LoadRefused: as `read_text_checkpoint`, or a problem that is not known.
    """
    checkpoint = read_text_checkpoint(name_or_path, AutoModelForSequenceClassification)
    model = checkpoint.model
    source = TextClassifierSource(
        module=Positional(model),
        for_export=lambda: Positional(with_fused_attention(model)),
        labels=labels_of(checkpoint.document, model.config.num_labels),
        settings=saved_settings(name_or_path) or classifier_settings(checkpoint.document, model.config.num_labels),
        **checkpoint.arguments,
    )
    _check(source, checkpoint)
    return source


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


def embedding_of_hugging_face(name_or_path: str) -> EmbeddingSource:
    """Load a model that embeds texts, with the layers of sentence-transformers where the checkpoint has them.

    Raises:
        LoadRefused: as `read_text_checkpoint`, or a layer that is not offered.
    """
    layers = read_sentence_layers(name_or_path)
    checkpoint = read_text_checkpoint(
        name_or_path, AutoModel, layers.folder, layers.max_tokens, lower_case=layers.lower_case
    )
    model = checkpoint.model
    settings = EmbeddingSettings(
        dimensions=_dimensions(layers, model.config.hidden_size),
        normalize=layers.normalize,
        prompts=layers.prompts,
        default_prompt=layers.default_prompt,
        similarity=layers.similarity,
    )
    source = EmbeddingSource(
        module=SentenceEmbedding(model, layers.poolings, layers.dense),
        for_export=lambda: SentenceEmbedding(with_fused_attention(model), layers.poolings, layers.dense),
        settings=settings,
        **checkpoint.arguments | {"provenance": checkpoint.arguments["provenance"] | layers.provenance()},
    )
    _check(source, checkpoint)
    return source


def rows_source_of_hugging_face(checkpoint: TextCheckpoint, wrap: Wrap, served: RowsTask, **more: Any) -> RowsSource:
    """Make a source of a checkpoint whose inputs take several rows.

    Args:
        checkpoint: the checkpoint.
        wrap: makes the network that is exported of the model.
        served: the task as the service opens it.
        more: further arguments of the source.

    Raises:
        LoadRefused: texts are tokenized differently than by `transformers`, or the network cannot be computed.
    """
    model = checkpoint.model
    source = RowsSource(
        module=wrap(model),
        for_export=lambda: wrap(with_fused_attention(model)),
        served=served,
        **checkpoint.arguments | more,
    )
    with reading("the tokenizer cannot be served"):
        check_same_tokens(served, checkpoint.tokenizer, source.max_tokens)
    check_computes(source)
    return source


def served_arguments(checkpoint: TextCheckpoint) -> dict[str, Any]:
    """Return the constructor's arguments that the served tasks of all texts have."""
    arguments = checkpoint.arguments
    kept = {name: arguments[name] for name in ("tokenizer_json", "max_tokens", "pad_id")}
    return kept | {"graph_inputs": arguments["input_names"]}


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


def _max_tokens(config: Any, tokenizer: Any) -> int:
    """Return the longest input in tokens; RoBERTa counts positions from the padding id on, so its table is longer."""
    positions = config.max_position_embeddings
    if "roberta" in config.model_type:
        positions -= config.pad_token_id + 1
    max_tokens = int(min(positions, tokenizer.model_max_length or positions))
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


def with_fused_attention(model: Any) -> Any:
    """Copy a model with its weights, with attention as one operator of the exported graph."""
    AttentionInterface.register(FUSED, _fused_attention)
    AttentionMaskInterface.register(FUSED, _padding_mask)
    copy = type(model)(deepcopy(model.config))  # a copy, because the configuration holds the form of attention
    copy.load_state_dict(model.state_dict())
    copy.set_attn_implementation(FUSED)
    return copy.eval()


def _padding_mask(*, attention_mask: Tensor, **_: Any) -> Tensor:
    """Return the padding bias that every layer adds to its attention scores; [B, 1, T, T]."""
    return padding_bias(attention_mask)


def _fused_attention(
    module: nn.Module,
    query_BHTK: Tensor,
    key_BHTK: Tensor,
    value_BHTK: Tensor,
    bias_B1TT: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    B, H, T, K = query_BHTK.shape
    query, key, value = (part.transpose(1, 2).reshape(B, T, H * K) for part in (query_BHTK, key_BHTK, value_BHTK))
    mixed_BTD = fused_attention(query, key, value, bias_B1TT, H)
    return mixed_BTD.view(B, T, H, K), None
