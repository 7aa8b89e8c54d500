"""Converts a trained translation model to a model folder, and refuses a result that is not the same model.

    PyTorch ──> encoder.onnx, model.onnx (the decoder step) ──> (int8) ──> the same sentences translated ──> folder

The folder appears in the store only when every comparison has passed.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console

from export.conversion.comparison.requirements import ConversionRefused, Precision
from export.conversion.comparison.translation import (
    MAX_SCORE_DIFFERENCE,
    compare_translations,
    judge,
    min_compared,
    require_little_loss,
    require_same,
    translate_all,
)
from export.conversion.model_folder.publishing import card_of_provenance, explain, put_into_store, with_half_precision
from export.conversion.model_folder.staging import folder_in_the_making
from export.conversion.model_folder.task import FolderTask
from export.conversion.sensitivity.batch_sensitivity import inputs_of, with_batch_sensitivity
from export.conversion.seq2seq.generation_settings import generation_document
from export.conversion.translation_source import TranslationSource
from export.data.translation import ParallelTexts
from export.onnx_graphs.passes import halve_exact_weights, quantize, use_standard_attention
from export.onnx_graphs.translation import OnnxTranslator, export_decoder_step, export_encoder, halve_translation
from export.provenance import this_command
from export.training.quality import MIN_FLOAT16_TOLERANCE, twice, with_confidence
from export.training.translation import TorchTranslator
from model_store.folder import (
    ENCODER,
    FORMAT,
    GRAPH,
    MANIFEST,
    TARGET_TOKENIZER,
    TOKENIZER,
    GoldenExample,
    Limits,
    Manifest,
    Tensor,
    Tolerance,
    write_golden,
)
from service.tasks.decoding.search import GOLDEN_SEARCHES

MAX_COMPARED_TOKENS = 48  # of a sentence without a reference
FEW_TOGETHER = 4  # golden examples per call, besides one and all: int8 scores depend on the batch


def convert_translation(
    source: TranslationSource,
    task: FolderTask[ParallelTexts],
    *,
    name: str,
    store: Path,
    compare_on: Mapping[str, ParallelTexts],
    precision: Precision,
    about: dict[str, Any],
    console: Console,
    explained: bool = True,
    halved: bool = True,
) -> Path:
    """Write the next version of model `name` into the store.

    Args:
        source: the model to convert.
        task: its task.
        name: the name of the model folder.
        store: the model store.
        compare_on: test splits by name, together at least `min_compared` sentences: compared with PyTorch, and
            measured where there are references.
        precision: the precision of the graphs' products.
        about: data, licence and the like, for the manifest's provenance and the model card.
        console: shows progress.
        explained: add the graph that explains, as in `export.conversion.classifier.convert`.
        halved: add float16 graphs for GPUs, judged on the splits that have references.

    Returns:
        the new folder.

    Raises:
        ConversionRefused: the translations differ from PyTorch's, or the precision costs too much quality.
        ExplainRefused: the graph that explains differs from PyTorch, or explains another model.
        ValueError: too few sentences to compare on, or none with references for int8 or float16.
    """
    num_sentences = sum(len(split) for split in compare_on.values())
    if num_sentences < (needed := min_compared(source.module)):
        raise ValueError(f"{num_sentences} sentences to compare on, at least {needed} are needed")
    if precision != "float32" and not any(split.target for split in compare_on.values()):
        raise ValueError(f"{precision} needs sentences with references, to measure what it costs in BLEU")
    with folder_in_the_making(store) as folder:
        console.print("exporting to ONNX")
        write_graphs(source, folder, precision)
        quality = compare_splits(source, folder, compare_on, precision, console)
        manifest = describe(source, task.name, folder, name, precision, quality, about)
        manifest = with_batch_sensitivity(folder, manifest, task, inputs_of(compare_on), console)
        if explained:
            explain(folder, manifest, task, source.module, console)
        if halved and (judged := {name: texts for name, texts in compare_on.items() if texts.target}):
            manifest = with_half_precision(folder, manifest, task, judged, console)
        target = put_into_store(folder, manifest, task, store, model_card)
    console.print(f"written: {target}")
    return target


def write_graphs(source: TranslationSource, folder: Path, precision: Precision) -> None:
    """Export the encoder and the decoder step, and bring their weights to the precision."""
    export_encoder(source.module, folder / ENCODER)
    export_decoder_step(source.module, folder / GRAPH)
    if precision == "float16":
        halve_translation(folder / ENCODER, folder / GRAPH)
        return
    for graph in (folder / ENCODER, folder / GRAPH):
        if precision == "int8":
            quantize(graph)
        else:
            halve_exact_weights(graph)
    use_standard_attention(folder / ENCODER)


def compare_splits(
    source: TranslationSource,
    folder: Path,
    compare_on: Mapping[str, ParallelTexts],
    precision: Precision,
    console: Console,
) -> dict[str, Any]:
    """Translate every split with PyTorch and with the graphs, by each search; compare the two, and measure BLEU.

    Returns:
        the comparisons and measures, as the manifest's `quality` has them.

    Raises:
        ConversionRefused: float32 translates differently from PyTorch, or another precision loses too much BLEU.
    """
    reference, graphs = TorchTranslator(source.module, torch.device("cpu")), OnnxTranslator(folder)
    quality: dict[str, Any] = {"compared_with_pytorch": {}}
    for split, texts in compare_on.items():
        if texts.target:
            quality[split] = {}
        for search, golden_request in GOLDEN_SEARCHES.items():
            what = f"{split}, {search}"
            # Without references nothing is measured, and a network with random weights would end at the limit alone.
            longest = min(MAX_COMPARED_TOKENS, source.module.config.max_tokens)
            request = golden_request if texts.target else golden_request._replace(max_new_tokens=longest)
            expected = translate_all(source, reference, texts.source, request, f"PyTorch: {what}", console)
            found = translate_all(source, graphs, texts.source, request, f"ONNX: {what}", console)
            comparison = compare_translations(source, texts.source, request, found, expected)
            console.print(f"{what}: {comparison}")
            if precision == "float32":
                require_same(comparison, what)
            quality["compared_with_pytorch"][what] = asdict(comparison)
            if not texts.target:
                continue
            measured, before = (judge(source, each, texts) for each in (found, expected))
            quality[split][search] = measured.as_dict()
            if precision != "float32":
                was = "bleu_before_quantization" if precision == "int8" else "bleu_in_float32"
                quality[split][search] |= {was: before.bleu}
                require_little_loss(before.bleu - measured.bleu, what, precision)
    return quality


def describe(
    source: TranslationSource,
    task_name: str,
    folder: Path,
    name: str,
    precision: Precision,
    quality: dict[str, Any],
    about: dict[str, Any],
) -> Manifest:
    """Write tokenizer, configuration and golden examples beside the graphs; return the manifest without checksums.

    Raises:
        ConversionRefused: float32 graphs score a golden example differently.
    """
    max_tokens = source.module.config.max_tokens
    write_configuration(source, folder)
    golden = golden_examples(source)
    write_golden(folder, golden)
    difference = golden_difference(source, folder, golden)
    if precision == "float32" and difference > MAX_SCORE_DIFFERENCE:
        raise ConversionRefused(
            f"ONNX is not PyTorch's model: scores of golden examples differ by up to {difference:.3g} (allowed:"
            f" {MAX_SCORE_DIFFERENCE:g})"
        )
    # int8 rounding depends on the batch and on the CPU's instructions: allow twice the observed difference. For float16
    # the difference observed here is too small, because a CPU computes most of it in float32.
    allowed = MAX_SCORE_DIFFERENCE if precision == "float32" else twice(difference)
    if precision == "float16":
        allowed = max(allowed, MIN_FLOAT16_TOLERANCE)
    return Manifest(
        format=FORMAT,
        name=name,
        task=task_name,
        precision=precision,
        inputs=[Tensor(tensor, "INT64", [-1, -1]) for tensor in ("input_ids", "attention_mask")],
        outputs=[
            Tensor("log_probabilities", "FP32", [-1, -1]),
            Tensor("top_ids", "INT64", [-1, -1]),
            Tensor("log_normalizers", "FP32", [-1, 1]),
        ],
        labels=[],
        limits=Limits(max_tokens=max_tokens),
        tolerance=Tolerance(allowed),
        skips_padding=True,
        files={},
        provenance=about | source.provenance | {"converted_by": this_command(), "torch": str(torch.__version__)},
        quality=quality,
    )


def write_configuration(source: TranslationSource, folder: Path) -> None:
    """Write the tokenizers, `config.json` and `generation_config.json`."""
    max_tokens = source.module.config.max_tokens
    (folder / TOKENIZER).write_text(source.tokenizer_json)
    if source.target_tokenizer_json is not None:
        (folder / TARGET_TOKENIZER).write_text(source.target_tokenizer_json)
    config: dict[str, Any] = {
        "model_type": "heed-translation",
        "source_language": source.source_language,
        "target_language": source.target_language,
        "max_position_embeddings": max_tokens,
        "vocab_size": source.module.config.vocab_size,
        "log_normalizers": True,
    }
    if source.language_codes is not None:
        config["language_codes"] = dict(source.language_codes.ids)
        config["unknown_language_id"] = source.language_codes.unknown_id
    if source.language_tokens is not None:
        config["language_tokens"] = msgspec.to_builtins(source.language_tokens)
    if source.prefixes:
        config["prefixes"] = msgspec.to_builtins(source.prefixes)
    generation: dict[str, Any] = {
        "bos_token_id": source.bos_id,
        "decoder_start_token_id": source.bos_id,
        "eos_token_id": source.eos_id,
        "pad_token_id": source.pad_id,
        "max_length": max_tokens,
    } | generation_document(source.defaults, source.eos_id)
    for file_name, document in {"config.json": config, "generation_config.json": generation}.items():
        (folder / file_name).write_text(json.dumps(document, indent=2) + "\n")


def golden_examples(source: TranslationSource) -> list[GoldenExample]:
    """Compute golden examples: texts, ids, and PyTorch's translations by each search with their scores."""
    task, examples = source.task(), []
    translator = TorchTranslator(source.module, torch.device("cpu"))
    for text in source.golden_texts():
        sentence = task.preprocess(text, truncate=True, field="text")
        if sentence.truncated:
            continue
        example = GoldenExample({"text": text}, {"input_ids": sentence.ids}, {})
        for search, request in GOLDEN_SEARCHES.items():
            sentence = task.preprocess(text, truncate=False, field="text", request=request)
            (found,) = source.translate(translator, [sentence])
            example.tensors[search] = found.ids
            example.outputs[search] = [found.score]
        examples.append(example)
    return examples


def golden_difference(source: TranslationSource, folder: Path, golden: list[GoldenExample]) -> float:
    """Return the largest difference of a golden score, in batches of several sizes, as a server replays them."""
    graphs, task, worst = OnnxTranslator(folder), source.task(), 0.0
    for search, request in GOLDEN_SEARCHES.items():
        sentences = [
            task.preprocess(example.inputs["text"], truncate=False, field="text", request=request) for example in golden
        ]
        for together in (1, FEW_TOGETHER, len(sentences)):
            for found, example in zip(source.translate(graphs, sentences, together), golden, strict=True):
                worst = max(worst, abs(found.score - example.outputs[search][0]))
    return worst


def model_card(manifest: Manifest, version: int) -> str:
    """Write the text of the folder's README.md; every figure comes from the manifest."""
    lines = [
        f"# {manifest.name}, version {version}",
        "",
        f"Task: {manifest.task}. Precision: {manifest.precision}. Longest input and longest answer:"
        f" {manifest.limits.max_tokens} tokens.",
        "",
        *card_of_provenance(manifest),
        "## Measured",
        "",
    ]
    compared = manifest.quality["compared_with_pytorch"]
    signatures, rows = dict[str, str](), list[str]()
    for split, searches in manifest.quality.items():
        if split == "compared_with_pytorch":
            continue
        for search, measured in searches.items():
            rows.append(
                f"| {split} | {measured['num_examples']} | {search} | {with_confidence(measured, 'bleu')} |"
                f" {with_confidence(measured, 'chrf')} | {with_confidence(measured, 'bleu_lower_tokenised')} |"
            )
            signatures |= {key: value for key, value in measured.items() if key.endswith("_signature")}
    if rows:
        lines += [
            "Measured with the graphs of this folder, against one reference translation each. The first BLEU and chrF"
            " are those of cased, detokenised text, as it is served. The last BLEU is that of lower-case text tokenised"
            " by Moses, as papers on Multi30k report it. The two must not be compared. ± is half the width of the 95 %"
            " confidence interval.",
            "",
            "| test split | n | search | BLEU | chrF | BLEU, lower case, tokenised |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            *(f"- {key.replace('_', ' ')}: `{value}`" for key, value in signatures.items()),
            "",
        ]
    lines += ["Compared with PyTorch on the same sentences:", ""]
    for what, comparison in compared.items():
        lines.append(
            f"- {what}: {comparison['translations_changed']} of {comparison['num_examples']} translations change"
            f" (PyTorch finds them worse by at most {comparison['max_score_lost']:.2g}), scores of the others differ by"
            f" at most {comparison['max_abs_score_difference']:.2g}"
        )
    return "\n".join(lines) + f"\n\n`{MANIFEST}` has all figures, and the checksum of every file.\n"
