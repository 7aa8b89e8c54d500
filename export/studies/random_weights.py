"""Writes text classifiers with random weights, to measure speed, which does not depend on training."""

from pathlib import Path

import torch
from rich.console import Console
from tokenizers import Tokenizer

from export.conversion.classifier import export_onnx, publish
from export.conversion.comparison.classifier import compare, onnx_outputs
from export.conversion.comparison.requirements import MIN_COMPARED, Precision
from export.conversion.golden_texts import made_up_sentences
from export.conversion.model_folder.staging import folder_in_the_making
from export.conversion.model_folder.task import OneGraphTask
from export.conversion.model_source import Labelled
from export.conversion.text_source import TextClassifierSource, optimized_as_bert
from export.networks.transformer import EncoderConfig, PackedTextClassifier, TextClassifier
from export.onnx_graphs.passes import quantize, use_standard_attention
from export.provenance import this_command
from model_store.folder import GRAPH


def write_random_weights(
    task: OneGraphTask[Labelled],
    *,
    name: str,
    store: Path,
    layers: int,
    width: int,
    heads: int,
    vocab_size: int,
    tokenizer: Path,
    precision: Precision,
    packed: bool,
    console: Console,
) -> Path:
    """Write a model folder with random weights; its manifest says so.

    Without `packed` the graph computes padding too, as the graphs of other converters do.

    Raises:
        ValueError: the tokenizer has more pieces than `vocab_size`.
    """
    source = random_weights_source(layers, width, heads, vocab_size, tokenizer.read_text(), packed=packed)
    with folder_in_the_making(store) as folder:
        export_onnx(source, folder / GRAPH)
        if precision == "int8":
            quantize(folder / GRAPH)
        use_standard_attention(folder / GRAPH)
        sample = made_up_sentences(MIN_COMPARED // 10)
        comparison = compare(onnx_outputs(source, folder / GRAPH, sample), source.outputs(source.module, sample))
        quality = {"compared_with_pytorch": {"onnx": comparison.as_dict()}}
        about = {
            "untrained": "random weights; for measuring speed only",
            "command": this_command(),
        }
        target = publish(source, task, folder, name, store, precision, comparison, quality, about)
    console.print(f"written: {target} ({comparison})")
    return target


def random_weights_source(
    layers: int, width: int, heads: int, vocab_size: int, tokenizer_json: str, *, packed: bool
) -> TextClassifierSource:
    """Build a text classifier with random weights.

    Raises:
        ValueError: the tokenizer has more pieces than `vocab_size`.
    """
    if (num_pieces := Tokenizer.from_str(tokenizer_json).get_vocab_size()) > vocab_size:
        raise ValueError(f"vocab_size is {vocab_size}, the tokenizer has {num_pieces} pieces")
    config = EncoderConfig(
        vocab_size=vocab_size,
        num_labels=2,
        d_model=width,
        num_layers=layers,
        num_heads=heads,
        d_ff=4 * width,
        max_tokens=512,
        norm_position="post",
    )
    torch.manual_seed(1)
    model = TextClassifier(config).eval()
    return TextClassifierSource(
        module=model,
        for_export=lambda: PackedTextClassifier(model) if packed else model,
        skips_padding=packed,
        input_names=("input_ids", "attention_mask"),
        tokenizer_json=tokenizer_json,
        labels=["NEGATIVE", "POSITIVE"],
        max_tokens=config.max_tokens,
        pad_id=0,
        optimized_as=optimized_as_bert(heads, width),
        model_type="heed-encoder",
        provenance={"num_parameters": sum(weight.numel() for weight in model.parameters())},
    )
