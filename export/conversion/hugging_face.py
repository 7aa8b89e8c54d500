"""Loads Hugging Face text classifiers of the BERT, DistilBERT and RoBERTa families as sources for conversion."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForSequenceClassification,
)

from export.conversion.checkpoints.reading import (
    CONFIG,
    LoadRefused,
    check_same_tokens,
    check_single_label,
    check_vocabulary,
    labels_of,
    load_tokenizer,
    load_weights,
    read_config,
    reading,
)
from export.conversion.model_source import Source, TextClassifierSource
from export.networks.transformer import fused_attention, padding_bias

# The graph's inputs by model type, for the families that conversion is tested with.
INPUTS_OF = {
    "bert": ("input_ids", "attention_mask", "token_type_ids"),
    "distilbert": ("input_ids", "attention_mask"),
    "roberta": ("input_ids", "attention_mask"),
    "xlm-roberta": ("input_ids", "attention_mask"),
}
FUSED = "heed_fused"


def source_of_hugging_face(name_or_path: str) -> TextClassifierSource:
    """Load a text classifier from a saved folder or a hub id.

    Raises:
        LoadRefused: not a complete single-label text classifier of a known family with its own fast tokenizer.
    """
    document = read_config(name_or_path, INPUTS_OF)
    labels_of(document, 0)
    model, said = load_weights(AutoModelForSequenceClassification, name_or_path)
    tokenizer = load_tokenizer(name_or_path)
    config = model.config
    check_single_label(document, config.num_labels)
    if not tokenizer.is_fast:
        raise LoadRefused("the tokenizer has no fast form (tokenizer.json)")
    if config.pad_token_id is None:
        raise LoadRefused(f"{CONFIG} has no pad_token_id")
    check_vocabulary(tokenizer.get_vocab(), model.get_input_embeddings().num_embeddings)
    max_tokens = _max_tokens(config, tokenizer)
    source = TextClassifierSource(
        module=_Positional(model),
        for_export=lambda: _Positional(_with_fused_attention(model)),
        skips_padding=False,
        input_names=INPUTS_OF[config.model_type],
        tokenizer_json=_tokenizer_json(tokenizer, max_tokens),
        labels=labels_of(document, config.num_labels),
        max_tokens=max_tokens,
        pad_id=config.pad_token_id,
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
        model_type=config.model_type,
        cuts_left=tokenizer.truncation_side == "left",
        provenance=provenance_of_loaded(name_or_path, model) | said,
    )
    with reading("the tokenizer cannot be served"):
        check_same_tokens(source.task, tokenizer, max_tokens)
    check_computes(source)
    return source


def _tokenizer_json(tokenizer: Any, max_tokens: int) -> str:
    """Write `tokenizer.json`, including the side on which long texts are truncated."""
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(max_tokens, direction=tokenizer.truncation_side)
    return str(backend.to_str())


def check_computes(source: Source) -> None:
    """Compute a few golden examples with the loaded network.

    Raises:
        LoadRefused: PyTorch cannot compute them, or the answers are no numbers.
    """
    inputs = source.golden_inputs()[:3]
    if not inputs:
        raise LoadRefused("the model takes so few tokens that no golden example fits")
    with reading("PyTorch cannot compute the loaded network"):
        logits_BC = source.logits(source.module, inputs)
    if logits_BC.shape != (len(inputs), len(source.labels)):
        raise LoadRefused(f"the network gives {logits_BC.shape[1]} logits for {len(source.labels)} labels")
    if not np.isfinite(logits_BC).all():
        raise LoadRefused("the network's answers are not finite numbers: its weights are damaged")


def provenance_of_loaded(name_or_path: str, model: Any) -> dict[str, Any]:
    """Return the provenance of a model that `transformers` has loaded."""
    return {
        "loaded_from": Path(name_or_path).name,
        "model_type": model.config.model_type,
        "num_parameters": model.num_parameters(),
        "transformers": transformers.__version__,
    }


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


class _Positional(nn.Module):
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


def _with_fused_attention(model: Any) -> Any:
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
