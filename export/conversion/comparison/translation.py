"""Compares a converted translation model with PyTorch on the same sentences.

Shapes: N target tokens, V pieces of the vocabulary.
"""

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from export.conversion.comparison.requirements import MIN_COMPARED, ConversionRefused, Precision
from export.conversion.translation_source import TranslationSource
from export.data.translation import ParallelTexts
from export.training.quality import MAX_BLEU_LOSS, TranslationQuality, translation_quality
from export.training.translation import Translator
from service.tasks.decoding.search import Hypothesis, SearchRequest
from service.tasks.decoding.sentence import Sentence

# The larger a network, the fewer sentences it is compared on, because a decoder step reads all its weights: one of 74
# million weights on 27 sentences, one of 4 million on 500.
COMPARED_WEIGHTS, MIN_COMPARED_LARGE = 2e9, 20
MAX_SCORE_DIFFERENCE = 1e-4  # in float32: of equal translations, and of two that rounding has swapped


@dataclass(frozen=True)
class TranslationComparison:
    """The differences between converted graphs and PyTorch on the same sentences, translated in batches."""

    num_examples: int
    max_abs_score_difference: float  # of sentences with the same translation
    translations_changed: int
    max_score_lost: float  # PyTorch's score of its own translation less that of the changed one


def min_compared(module: nn.Module) -> int:
    """Return how many sentences a network must be compared with PyTorch on."""
    num_weights = sum(weight.numel() for weight in module.parameters())
    return min(MIN_COMPARED, max(MIN_COMPARED_LARGE, int(COMPARED_WEIGHTS / num_weights)))


def translate_all(
    source: TranslationSource,
    translator: Translator,
    texts: list[str],
    request: SearchRequest,
    description: str,
    console: Console,
    batch_size: int = 64,
) -> list[Hypothesis]:
    """Translate texts as the service would, with progress; a text beyond the limit is truncated."""
    task, found = source.task(), []
    for first in track(range(0, len(texts), 4 * batch_size), description=description, console=console, transient=True):
        part = texts[first : first + 4 * batch_size]
        sentences = [task.preprocess(text, truncate=True, field="text", request=request) for text in part]
        found += source.translate(translator, sentences, batch_size)
    return found


def judge(source: TranslationSource, found: list[Hypothesis], texts: ParallelTexts) -> TranslationQuality:
    """Measure the quality of translations against their references."""
    task = source.task()
    return translation_quality([task.text_of(each.ids) for each in found], texts.target, source.target_language)


def compare_translations(
    source: TranslationSource,
    texts: list[str],
    request: SearchRequest,
    found: list[Hypothesis],
    expected: list[Hypothesis],
) -> TranslationComparison:
    """Compare converted translations with PyTorch's; where they differ, PyTorch scores the converted one too."""
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
    """Score a translation with PyTorch, all its tokens at once (teacher forcing)."""
    options = sentence.options
    wanted = ids if len(ids) == options.max_new_tokens else [*ids, source.eos_id]
    given, target = torch.tensor([sentence.ids]), torch.tensor([[sentence.bos_id, *wanted[:-1]]])
    logits_NV = source.module(given, torch.ones_like(given), target, torch.ones_like(target))
    probabilities_N = torch.log_softmax(logits_NV, dim=-1).gather(1, torch.tensor(wanted)[:, None])[:, 0]
    forced = options.constraints is not None and options.constraints.forced_bos_token_id is not None
    total = float(probabilities_N[1 if forced else 0 :].sum())  # a forced token has probability 1
    score: float = total / len(wanted) ** options.length_penalty
    return score


def require_same(comparison: TranslationComparison, what: str) -> None:
    """Refuse float32 graphs whose translations differ, unless rounding swapped two equally likely ones.

    Raises:
        ConversionRefused: scores differ by more than rounding.
    """
    worst = max(comparison.max_abs_score_difference, comparison.max_score_lost)
    if not worst <= MAX_SCORE_DIFFERENCE:
        raise ConversionRefused(
            f"ONNX is not PyTorch's model ({what}): scores differ by up to {comparison.max_abs_score_difference:.3g},"
            f" {comparison.translations_changed} of {comparison.num_examples} translations change, by up to"
            f" {comparison.max_score_lost:.3g} (allowed: {MAX_SCORE_DIFFERENCE:g})"
        )


def require_little_loss(loss: float, what: str, precision: Precision) -> None:
    """Refuse int8 or float16 graphs that lose too much BLEU.

    Raises:
        ConversionRefused: the loss is above the limit.
    """
    if loss > MAX_BLEU_LOSS:
        raise ConversionRefused(f"{precision} loses {loss:.2f} BLEU ({what}), allowed are {MAX_BLEU_LOSS}")
