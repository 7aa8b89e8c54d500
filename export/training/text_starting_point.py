"""Starting points of text classifier training: random weights, pre-trained ones, or pre-trained words."""

import dataclasses
from typing import NamedTuple

from tokenizers import Tokenizer
from torch import Tensor

from export.data.text_classification import TextClassificationData
from export.data.tokenizers import train_tokenizer, with_everyday_spelling
from export.networks import bert_weights as pretrained
from export.networks.transformer import EncoderConfig
from export.training.text_recipes import BERT_VOCAB_SIZE, NetworkConfig, TextTrainConfig


class StartingPoint(NamedTuple):
    """The starting point of training."""

    tokenizer: Tokenizer
    config: NetworkConfig
    weights: dict[str, Tensor]  # empty for random weights


def starting_point(data: TextClassificationData, config: TextTrainConfig) -> StartingPoint:
    """Build a new tokenizer and random weights, or load pre-trained ones.

    Raises:
        FileNotFoundError: the pre-trained weights are not installed.
        ValueError: the configured shape is not the pre-trained one.
    """
    num_labels = len(data.label_names)
    if config.start_from == "minilm-words":
        return starting_point_from_words(data, config)
    if config.start_from != "scratch":
        if config.model != EncoderConfig(vocab_size=BERT_VOCAB_SIZE, num_labels=2, dropout=config.model.dropout):
            raise ValueError(f"start_from={config.start_from} brings its own shape: only model.dropout can be changed")
        folder = pretrained.minilm_folder()
        model_config = pretrained.bert_config(folder, num_labels, config.model.dropout)
        weights = pretrained.bert_weights(folder) if config.start_from == "minilm" else {}
        return StartingPoint(with_everyday_spelling(pretrained.bert_tokenizer(folder)), model_config, weights)
    tokenizer = train_tokenizer(data.train.texts, config.vocab_size)
    # A small data set yields fewer pieces than configured.
    vocab_size = tokenizer.get_vocab_size()
    return StartingPoint(tokenizer, dataclasses.replace(config.model, vocab_size=vocab_size, num_labels=num_labels), {})


def starting_point_from_words(data: TextClassificationData, config: TextTrainConfig) -> StartingPoint:
    """Start with part of the pre-trained vocabulary and its vectors, in a network of the configured shape.

    Raises:
        FileNotFoundError: the pre-trained weights are not installed.
        ValueError: `vocab_size` is too small, or the network is not a Transformer.
    """
    if not isinstance(config.model, EncoderConfig):
        raise ValueError("start_from=minilm-words: the network must be a Transformer")  # noqa: TRY004, a setting of a run
    folder = pretrained.minilm_folder()
    tokenizer = with_everyday_spelling(pretrained.bert_tokenizer(folder))
    kept = pretrained.pieces_to_keep(tokenizer, data.train.texts, config.vocab_size)
    vectors_VD = pretrained.bert_weights(folder)["embedding.weight"][kept]
    shape = dataclasses.replace(config.model, vocab_size=len(kept), num_labels=len(data.label_names))
    width = config.model.embedding_width or config.model.d_model
    weights = {"embedding.weight": pretrained.in_fewer_dimensions(vectors_VD, width)}
    return StartingPoint(pretrained.with_pieces(tokenizer, kept), shape, weights)
