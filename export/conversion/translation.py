"""Turns a trained translation model into a model folder, and refuses where the result is not the same model.

    PyTorch ──> encoder.onnx, model.onnx (the decoder step) ──> (int8) ──> the same sentences translated ──> folder

The folder appears in the store only when every comparison has passed.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from export.conversion.classifier import (
    MIN_COMPARED,
    ConversionRefused,
    Precision,
    card_of_provenance,
    explain,
    folder_in_the_making,
    put_into_store,
    with_half_precision,
)
from export.conversion.golden_texts import GOLDEN_TEXTS
from export.conversion.model_source import provenance_of
from export.conversion.sensitivity.batch_sensitivity import inputs_of, with_batch_sensitivity
from export.data.translation import ParallelTexts
from export.networks.translation import BOS_ID, EOS_ID, PAD_ID, TranslationConfig, TranslationTransformer
from export.onnx_graphs.passes import halve_exact_weights, quantize, use_standard_attention
from export.onnx_graphs.translation import OnnxTranslator, export_decoder_step, export_encoder, halve_translation
from export.provenance import this_command
from export.training.quality import (
    MAX_BLEU_LOSS,
    MIN_FLOAT16_TOLERANCE,
    TranslationQuality,
    translation_quality,
    twice,
    with_confidence,
)
from export.training.run_folder import read_result
from export.training.translation import NETWORKS, TorchTranslator, Translator, load_run_model, translate
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
from service.tasks.translation import LanguageCodes, Translation
from service.tasks.translation_search import (
    GOLDEN_SEARCHES,
    MODEL_DEFAULTS,
    Hypothesis,
    SearchDefaults,
    SearchRequest,
    Sentence,
)

UNKNOWN_CODE = ">>unknown<<"  # a language code that no model knows
FEW_TOGETHER = 4  # golden examples in a call, beside one and all of them: in int8 each company gives other scores
MAX_SCORE_DIFFERENCE = 1e-4  # float32: of the same translation; and between two that rounding has made change places


@dataclass(frozen=True, kw_only=True)
class TranslationSource:
    """A PyTorch translation model with its tokenizer and languages."""

    module: TranslationTransformer
    tokenizer_json: str
    source_language: str
    target_language: str
    target_tokenizer_json: str | None = None
    bos_id: int = BOS_ID
    eos_id: int = EOS_ID
    pad_id: int = PAD_ID
    defaults: SearchDefaults = MODEL_DEFAULTS
    language_codes: LanguageCodes | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def task(self) -> Translation:
        """Pre- and postprocessing, as the service will do it."""
        return Translation(
            self.tokenizer_json,
            max_tokens=self.module.config.max_tokens,
            bos_id=self.bos_id,
            eos_id=self.eos_id,
            source_language=self.source_language,
            target_language=self.target_language,
            target_tokenizer_json=self.target_tokenizer_json,
            defaults=self.defaults,
            language_codes=self.language_codes,
        )

    def golden_texts(self) -> list[str]:
        """The golden texts; of a model with language codes also one with a code and one with an unknown code."""
        if self.language_codes is None:
            return list(GOLDEN_TEXTS)
        codes = [*list(self.language_codes.ids)[:1], UNKNOWN_CODE]
        return [*GOLDEN_TEXTS, *(f"{code} {text}" for code, text in zip(codes, GOLDEN_TEXTS, strict=False))]

    def translate(self, translator: Translator, sentences: list[Sentence], batch_size: int = 64) -> list[Hypothesis]:
        """Translate with this model's beginning and end of a sentence."""
        ids, options = [each.ids for each in sentences], [each.options for each in sentences]
        return translate(translator, ids, options, batch_size, bos_id=self.bos_id, eos_id=self.eos_id)


def translation_source_of_run(run_dir: Path) -> TranslationSource:
    """The best weights of a finished training run.

    Raises:
        FileNotFoundError: the run is not finished, or there is none.
        ValueError: its network has no form for serving.
    """
    result = read_result(run_dir)
    if result["network"] != NETWORKS[TranslationConfig][0]:
        raise ValueError(f"{run_dir} holds a {result['network']}: only the Transformer has a form for serving")
    model = load_run_model(run_dir)
    with torch.no_grad():
        # Attention leaves out what stands there, and no step predicts it; but the largest row sets the scale of all in
        # int8, and that one may have grown without a bound.
        model.embedding.weight[PAD_ID] = 0.0
    return TranslationSource(
        module=model,
        tokenizer_json=(run_dir / TOKENIZER).read_text(),
        source_language=result["source_language"],
        target_language=result["target_language"],
        provenance=provenance_of(result),
    )


@dataclass(frozen=True)
class TranslationComparison:
    """Converted graphs against PyTorch on the same sentences, one after another in batches."""

    num_examples: int
    max_abs_score_difference: float  # of sentences with the same translation
    translations_changed: int
    max_score_lost: float  # how much worse than PyTorch's PyTorch finds the changed ones; 0 without any


def convert_translation(
    source: TranslationSource,
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
        source: the model.
        name: of the model folder.
        store: the model store.
        compare_on: test splits by name, together at least 500 sentences: compared with PyTorch, and measured where
            there are references.
        precision: of the graphs' products.
        about: goes into the manifest's provenance and the model card: data, licence, ...
        console: for progress.
        explained: as `export.conversion.classifier.convert` takes it.
        halved: the same, judged on the splits that have references.

    Returns:
        the new folder.

    Raises:
        ConversionRefused: the translations differ from PyTorch's, or the precision costs too much quality.
        ExplainRefused: the graph that explains differs from PyTorch, or explains another model.
        ValueError: too few sentences to compare on, or none with references for int8 or float16.
    """
    num_sentences = sum(len(split) for split in compare_on.values())
    if num_sentences < MIN_COMPARED:
        raise ValueError(f"{num_sentences} sentences to compare on, at least {MIN_COMPARED} are needed")
    if precision != "float32" and not any(split.target for split in compare_on.values()):
        raise ValueError(f"{precision} needs sentences with references, to measure what it costs in BLEU")
    with folder_in_the_making(store) as folder:
        console.print("exporting to ONNX")
        export_encoder(source.module, folder / ENCODER)
        export_decoder_step(source.module, folder / GRAPH)
        if precision == "float16":
            halve_translation(folder / ENCODER, folder / GRAPH)
        else:
            for graph in (folder / ENCODER, folder / GRAPH):
                if precision == "int8":
                    quantize(graph)
                else:
                    halve_exact_weights(graph)
            use_standard_attention(folder / ENCODER)
        reference, graphs = TorchTranslator(source.module, torch.device("cpu")), OnnxTranslator(folder)
        quality: dict[str, Any] = {"compared_with_pytorch": {}}
        for split, texts in compare_on.items():
            if texts.target:
                quality[split] = {}
            for search, request in GOLDEN_SEARCHES.items():
                what = f"{split}, {search}"
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
        manifest = describe(source, folder, name, precision, quality, about)
        manifest = with_batch_sensitivity(folder, manifest, inputs_of(compare_on), console)
        if explained:
            explain(folder, manifest, source.module, console)
        if halved and (judged := {name: texts for name, texts in compare_on.items() if texts.target}):
            manifest = with_half_precision(folder, manifest, judged, console)
        target = put_into_store(folder, manifest, store, model_card)
    console.print(f"written: {target}")
    return target


def translate_all(
    source: TranslationSource,
    translator: Translator,
    texts: list[str],
    request: SearchRequest,
    description: str,
    console: Console,
    batch_size: int = 64,
) -> list[Hypothesis]:
    """Translate texts as the service would, with progress; one beyond the limit is cut."""
    task, found = source.task(), []
    for first in track(range(0, len(texts), 4 * batch_size), description=description, console=console, transient=True):
        part = texts[first : first + 4 * batch_size]
        sentences = [task.preprocess(text, truncate=True, field="text", request=request) for text in part]
        found += source.translate(translator, sentences, batch_size)
    return found


def judge(source: TranslationSource, found: list[Hypothesis], texts: ParallelTexts) -> TranslationQuality:
    """What translations are worth."""
    task = source.task()
    return translation_quality([task.text_of(each.ids) for each in found], texts.target, source.target_language)


def compare_translations(
    source: TranslationSource,
    texts: list[str],
    request: SearchRequest,
    found: list[Hypothesis],
    expected: list[Hypothesis],
) -> TranslationComparison:
    """Converted translations against PyTorch's; where they differ, PyTorch says how much worse the converted one is."""
    task = source.task()
    changed, difference, lost = 0, 0.0, 0.0
    for text, ours, theirs in zip(texts, found, expected, strict=True):
        if ours.ids == theirs.ids:
            difference = max(difference, abs(ours.score - theirs.score))
            continue
        changed += 1
        sentence = task.preprocess(text, truncate=True, field="text", request=request)
        score = pytorch_score(source, sentence, ours.ids)
        lost = max(lost, theirs.score - score)
    return TranslationComparison(len(texts), difference, changed, lost)


@torch.inference_mode()
def pytorch_score(source: TranslationSource, sentence: Sentence, ids: list[int]) -> float:
    """What PyTorch thinks of a translation, all its tokens at once."""
    options = sentence.options
    wanted = ids if len(ids) == options.max_new_tokens else [*ids, source.eos_id]
    given, target = torch.tensor([sentence.ids]), torch.tensor([[source.bos_id, *wanted[:-1]]])
    logits_NV = source.module(given, torch.ones_like(given), target, torch.ones_like(target))
    total = float(torch.log_softmax(logits_NV, dim=-1).gather(1, torch.tensor(wanted)[:, None]).sum())
    return total / len(wanted) ** options.length_penalty


def require_same(comparison: TranslationComparison, what: str) -> None:
    """The bar for float32: the same translations, but where rounding lets two that are as likely change places.

    Raises:
        ConversionRefused: it is missed.
    """
    worst = max(comparison.max_abs_score_difference, comparison.max_score_lost)
    if not worst <= MAX_SCORE_DIFFERENCE:
        raise ConversionRefused(
            f"ONNX is not PyTorch's model ({what}): scores differ by up to {comparison.max_abs_score_difference:.3g},"
            f" {comparison.translations_changed} of {comparison.num_examples} translations change, by up to"
            f" {comparison.max_score_lost:.3g} (allowed: {MAX_SCORE_DIFFERENCE:g})"
        )


def require_little_loss(loss: float, what: str, precision: Precision) -> None:
    """The bar for int8 and float16.

    Raises:
        ConversionRefused: it is missed.
    """
    if loss > MAX_BLEU_LOSS:
        raise ConversionRefused(f"{precision} loses {loss:.2f} BLEU ({what}), allowed are {MAX_BLEU_LOSS}")


def describe(
    source: TranslationSource,
    folder: Path,
    name: str,
    precision: Precision,
    quality: dict[str, Any],
    about: dict[str, Any],
) -> Manifest:
    """Write tokenizer, configuration and golden examples beside the graphs; the manifest, without checksums yet.

    Raises:
        ConversionRefused: float32 graphs score a golden example differently.
    """
    config = source.module.config
    (folder / TOKENIZER).write_text(source.tokenizer_json)
    if source.target_tokenizer_json is not None:
        (folder / TARGET_TOKENIZER).write_text(source.target_tokenizer_json)
    documents = {
        "config.json": {
            "model_type": "heed-translation",
            "source_language": source.source_language,
            "target_language": source.target_language,
            "max_position_embeddings": config.max_tokens,
            **(
                {}
                if source.language_codes is None
                else {
                    "language_codes": dict(source.language_codes.ids),
                    "unknown_language_id": source.language_codes.unknown_id,
                }
            ),
        },
        "generation_config.json": {
            "bos_token_id": source.bos_id,
            "decoder_start_token_id": source.bos_id,
            "eos_token_id": source.eos_id,
            "pad_token_id": source.pad_id,
            "max_length": config.max_tokens,
            "num_beams": source.defaults.num_beams,
            "length_penalty": source.defaults.length_penalty,
            "early_stopping": source.defaults.early_stopping,
            **({} if source.defaults.max_new_tokens is None else {"max_new_tokens": source.defaults.max_new_tokens}),
        },
    }
    for file_name, document in documents.items():
        (folder / file_name).write_text(json.dumps(document, indent=2) + "\n")
    golden = golden_examples(source)
    write_golden(folder, golden)
    difference = golden_difference(source, folder, golden)
    if precision == "float32" and difference > MAX_SCORE_DIFFERENCE:
        raise ConversionRefused(
            f"ONNX is not PyTorch's model: scores of golden examples differ by up to {difference:.3g} (allowed:"
            f" {MAX_SCORE_DIFFERENCE:g})"
        )
    # In int8 rounding depends on the company in the batch and on the CPU's instructions: twice what was seen here. In
    # float16 the CPU, which was seen here, computes most of it in float32.
    allowed = MAX_SCORE_DIFFERENCE if precision == "float32" else twice(difference)
    if precision == "float16":
        allowed = max(allowed, MIN_FLOAT16_TOLERANCE)
    return Manifest(
        format=FORMAT,
        name=name,
        task="translation",
        precision=precision,
        inputs=[Tensor(tensor, "INT64", [-1, -1]) for tensor in ("input_ids", "attention_mask")],
        outputs=[Tensor("log_probabilities", "FP32", [-1, -1]), Tensor("top_ids", "INT64", [-1, -1])],
        labels=[],
        limits=Limits(max_tokens=config.max_tokens),
        tolerance=Tolerance(allowed),
        skips_padding=True,
        files={},
        provenance=about | source.provenance | {"converted_by": this_command(), "torch": str(torch.__version__)},
        quality=quality,
    )


def golden_examples(source: TranslationSource) -> list[GoldenExample]:
    """Texts, their ids, and PyTorch's translations of them by each search, with their scores."""
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
    """How far the graphs' scores lie from the golden ones: alone and together, as a server replays them."""
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
    """The folder's README.md; every figure comes from the manifest."""
    lines = [
        f"# {manifest.name}, version {version}",
        "",
        f"Task: {manifest.task}. Precision: {manifest.precision}. Longest input and longest translation:"
        f" {manifest.limits.max_tokens} tokens.",
        "",
        *card_of_provenance(manifest),
        "## Measured",
        "",
    ]
    compared = manifest.quality["compared_with_pytorch"]
    signatures, rows = {}, []
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
            "With the graphs of this folder, against one reference translation each. The first BLEU and chrF are of"
            " cased, detokenised text, as it is served; the last BLEU of text in lower case, tokenised by Moses, as"
            " papers on Multi30k report it. The two must not be compared. Behind each the half width of its 95 %"
            " interval.",
            "",
            "| test split | n | search | BLEU | chrF | BLEU, lower case, tokenised |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            *(f"- {key.replace('_', ' ')}: `{value}`" for key, value in signatures.items()),
            "",
        ]
    lines += ["Against PyTorch on the same sentences:", ""]
    for what, comparison in compared.items():
        lines.append(
            f"- {what}: {comparison['translations_changed']} of {comparison['num_examples']} translations change"
            f" (PyTorch finds them worse by at most {comparison['max_score_lost']:.2g}), scores of the others differ by"
            f" at most {comparison['max_abs_score_difference']:.2g}"
        )
    return "\n".join(lines) + f"\n\n`{MANIFEST}` has the same in full, and the checksum of every file.\n"
