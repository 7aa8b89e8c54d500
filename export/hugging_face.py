"""Classifiers in Hugging Face form, as sources for conversion.

Of texts the BERT, DistilBERT and RoBERTa families, of images ViT and DeiT.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import transformers
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from export.source import ImageClassifierSource, TextClassifierSource
from export.transformer import fused_attention, padding_bias
from model_store.folder import PREPROCESSOR
from service.tasks.image_classification import PreprocessorConfig

# The graph's inputs by model type; the families that conversion is tested with.
INPUTS_OF = {
    "bert": ("input_ids", "attention_mask", "token_type_ids"),
    "distilbert": ("input_ids", "attention_mask"),
    "roberta": ("input_ids", "attention_mask"),
    "xlm-roberta": ("input_ids", "attention_mask"),
}
IMAGE_MODEL_TYPES = ("vit", "deit")
FUSED = "heed_fused"


class LoadRefused(ValueError):
    """A model that cannot be converted; the message says why."""


def source_of_hugging_face(name_or_path: str) -> TextClassifierSource:
    """A saved model folder, or a hub id.

    Raises:
        LoadRefused: not a single-label text classifier of a known family with a fast tokenizer.
    """
    try:
        model = AutoModelForSequenceClassification.from_pretrained(name_or_path).eval().float()
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise LoadRefused(f"{name_or_path}: {error}") from error
    config = model.config
    if config.model_type not in INPUTS_OF:
        raise LoadRefused(f"model type {config.model_type!r} is not one of {', '.join(INPUTS_OF)}")
    if config.problem_type not in (None, "single_label_classification") or config.num_labels < 2:
        raise LoadRefused(
            f"problem_type {config.problem_type!r} with {config.num_labels} labels; only single-label classification is"
            " offered"
        )
    if not tokenizer.is_fast:
        raise LoadRefused("the tokenizer has no fast form (tokenizer.json)")
    if config.pad_token_id is None:
        raise LoadRefused("config.json has no pad_token_id")
    names = INPUTS_OF[config.model_type]
    return TextClassifierSource(
        module=_Positional(model),
        for_export=lambda: _Positional(_with_fused_attention(model)),
        skips_padding=False,
        input_names=names,
        tokenizer_json=tokenizer.backend_tokenizer.to_str(),
        labels=[config.id2label[number] for number in range(config.num_labels)],
        max_tokens=_max_tokens(config, tokenizer),
        pad_id=config.pad_token_id,
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
        model_type=config.model_type,
        provenance=provenance_of_loaded(name_or_path, model),
    )


def image_source_of_hugging_face(name_or_path: str) -> ImageClassifierSource:
    """A saved model folder, or a hub id.

    Raises:
        LoadRefused: not an image classifier of a known family, or its preprocessing is not offered.
    """
    try:
        model = (
            AutoModelForImageClassification.from_pretrained(name_or_path, attn_implementation="eager").eval().float()
        )
        path = transformers.utils.cached_file(name_or_path, PREPROCESSOR)
        preprocessor = msgspec.json.decode(Path(path).read_bytes())
        prepared = msgspec.convert(preprocessor, PreprocessorConfig)
    except (OSError, ValueError) as error:
        raise LoadRefused(f"{name_or_path}: {error}") from error
    config = model.config
    if config.model_type not in IMAGE_MODEL_TYPES:
        raise LoadRefused(f"model type {config.model_type!r} is not one of {', '.join(IMAGE_MODEL_TYPES)}")
    if (prepared.pixels.height, prepared.pixels.width) != (config.image_size, config.image_size):
        raise LoadRefused(
            f"{PREPROCESSOR} prepares {prepared.pixels.height} x {prepared.pixels.width} pixels, the model takes"
            f" {config.image_size} x {config.image_size}"
        )
    return ImageClassifierSource(
        module=_ImageLogits(model),
        labels=[config.id2label[number] for number in range(config.num_labels)],
        image_size=config.image_size,
        model_type=config.model_type,
        loaded_preprocessor=preprocessor,
        provenance=provenance_of_loaded(name_or_path, model),
    )


def provenance_of_loaded(name_or_path: str, model: Any) -> dict[str, Any]:
    """Where a model of `transformers` came from."""
    return {
        "loaded_from": Path(name_or_path).name,
        "model_type": model.config.model_type,
        "num_parameters": model.num_parameters(),
        "transformers": transformers.__version__,
    }


class _ImageLogits(nn.Module):
    """A Hugging Face image classifier with logits alone out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Float32 [B, 3, H, W]; logits [B, C]."""
        logits: Tensor = self.model(pixel_values=pixel_values).logits
        return logits


def _max_tokens(config: Any, tokenizer: Any) -> int:
    """The longest input: RoBERTa counts its positions from the padding id on, and so has fewer than its table."""
    positions = config.max_position_embeddings
    if "roberta" in config.model_type:
        positions -= config.pad_token_id + 1
    return int(min(positions, tokenizer.model_max_length))


class _Positional(nn.Module):
    """A Hugging Face model with tensors in a fixed order in, and logits alone out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Int64 [B, T] each; logits [B, C]."""
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **more).logits
        return logits


def _with_fused_attention(model: Any) -> Any:
    """The same weights, with attention as one operator of the exported graph."""
    AttentionInterface.register(FUSED, _fused_attention)
    AttentionMaskInterface.register(FUSED, _padding_mask)
    copy = type(model)(deepcopy(model.config))  # its own: the form of attention is kept in the configuration
    copy.load_state_dict(model.state_dict())
    copy.set_attn_implementation(FUSED)
    return copy.eval()


def _padding_mask(*, attention_mask: Tensor, **_: Any) -> Tensor:
    """What every layer adds to its scores, [B, 1, T, T]."""
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
    parts = [part.transpose(1, 2).reshape(B, T, H * K) for part in (query_BHTK, key_BHTK, value_BHTK)]
    mixed_BTD = fused_attention(*parts, bias_B1TT, H)
    return mixed_BTD.view(B, T, H, K), None
