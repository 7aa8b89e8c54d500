"""Measures predictions: accuracy, F1, confusion matrix and calibration of classifiers, BLEU and chrF of translations.

It also has the limits of the loss that a precision may cause.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import sacrebleu
from numpy.typing import NDArray
from sacremoses import MosesPunctNormalizer, MosesTokenizer
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

# Allowed losses of int8 and float16: half a point.
MAX_ACCURACY_LOSS = 0.005
MAX_BLEU_LOSS = 0.5
# Smallest tolerance of float16 golden scores and logits, because the CPU of the conversion computes most of float16 in
# float32: a hundredth in the likelihood of a token, less in the probability of a class.
MIN_FLOAT16_TOLERANCE = 0.01
NUM_BOOTSTRAP = 1_000  # resampled test splits (Koehn 2004, "Statistical Significance Tests for Machine Translation")


@dataclass(frozen=True)
class ClassificationQuality:
    """The quality of a classifier on `num_examples` labelled examples; fractions lie between 0 and 1."""

    num_examples: int
    accuracy: float
    accuracy_standard_error: float
    f1_macro: float
    confusion_matrix: list[list[int]]  # rows: true class, columns: predicted class
    expected_calibration_error: float

    def as_dict(self) -> dict[str, object]:
        """Return the fields for JSON."""
        return asdict(self)


def classification_quality(logits_BC: NDArray[np.float32], labels_B: NDArray[np.int64]) -> ClassificationQuality:
    """Judge logits against true labels."""
    probabilities_BC = softmax(logits_BC)
    predicted_B = logits_BC.argmax(axis=1)
    accuracy = float(accuracy_score(labels_B, predicted_B))
    return ClassificationQuality(
        num_examples=len(labels_B),
        accuracy=accuracy,
        accuracy_standard_error=float(np.sqrt(accuracy * (1 - accuracy) / len(labels_B))),
        f1_macro=float(f1_score(labels_B, predicted_B, average="macro")),
        confusion_matrix=confusion_matrix(labels_B, predicted_B, labels=range(logits_BC.shape[1])).tolist(),
        expected_calibration_error=expected_calibration_error(probabilities_BC, labels_B),
    )


def softmax(logits_BC: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute probabilities along the last axis."""
    shifted = np.exp(logits_BC - logits_BC.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float32] = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def expected_calibration_error(
    probabilities_BC: NDArray[np.float32],
    labels_B: NDArray[np.int64],
    num_bins: int = 15,
) -> float:
    """Compute the mean gap between confidence and accuracy over equal-width bins of confidence.

    Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), equation 3.
    """
    confidence_B = probabilities_BC.max(axis=1)
    correct_B = probabilities_BC.argmax(axis=1) == labels_B
    bin_B = np.minimum((confidence_B * num_bins).astype(int), num_bins - 1)
    gaps = [
        (bin_B == number).mean() * abs(confidence_B[bin_B == number].mean() - correct_B[bin_B == number].mean())
        for number in np.unique(bin_B)
    ]
    return float(sum(gaps))


@dataclass(frozen=True)
class TranslationQuality:
    """Quality of `num_examples` translations with one reference each, by sacreBLEU (Post 2018, arXiv 1804.08771).

    `bleu` and `chrf` measure the text as served: cased and detokenised. `bleu_lower_tokenised` is the measure of papers
    on Multi30k, on lower-case text tokenised by Moses. The two must never be compared.
    """

    num_examples: int
    bleu: float
    bleu_confidence: float  # half the width of the interval that holds 95 % of resampled test splits; so are the others
    bleu_signature: str
    chrf: float
    chrf_confidence: float
    chrf_signature: str
    bleu_lower_tokenised: float
    bleu_lower_tokenised_confidence: float
    bleu_lower_tokenised_signature: str

    def as_dict(self) -> dict[str, object]:
        """Return the fields for JSON."""
        return asdict(self)


class _Chrf(sacrebleu.CHRF):
    """chrF whose scores are all Python floats: sacreBLEU's interval mixes types where a resample scores 0."""

    def _compute_score_from_stats(self, stats: list[int]) -> Any:
        found = super()._compute_score_from_stats(stats)
        found.score = float(found.score)
        return found


def translation_quality(
    translations: Sequence[str], references: Sequence[str], language: str = "de"
) -> TranslationQuality:
    """Judge translations into `language` against one reference each."""
    bleu, chrf = sacrebleu.BLEU(), _Chrf()
    tokenised = sacrebleu.BLEU(tokenize="none", lowercase=True, force=True)
    cased = bleu.corpus_score(translations, [references], NUM_BOOTSTRAP)
    characters = chrf.corpus_score(translations, [references], NUM_BOOTSTRAP)
    words, wanted = (lower_tokenised(texts, language) for texts in (translations, references))
    lower = tokenised.corpus_score(words, [wanted], NUM_BOOTSTRAP)
    return TranslationQuality(
        num_examples=len(references),
        bleu=cased.score,
        bleu_confidence=float(cased._ci),
        bleu_signature=str(bleu.get_signature()),
        chrf=characters.score,
        chrf_confidence=float(characters._ci),
        chrf_signature=str(chrf.get_signature()),
        bleu_lower_tokenised=lower.score,
        bleu_lower_tokenised_confidence=float(lower._ci),
        bleu_lower_tokenised_signature=f"Moses tokenizer ({language}), {tokenised.get_signature()}",
    )


def with_confidence(measured: Mapping[str, Any], name: str) -> str:
    """Format a figure of `TranslationQuality.as_dict` with its confidence interval."""
    return f"{measured[name]:.2f} ± {measured[f'{name}_confidence']:.2f}"


def lower_tokenised(texts: Sequence[str], language: str) -> list[str]:
    """Tokenise like Multi30k's own script: lower case, normalised punctuation, Moses tokenizer."""
    normalizer, tokenizer = MosesPunctNormalizer(language), MosesTokenizer(language)
    return [tokenizer.tokenize(normalizer.normalize(text.lower()), return_str=True) for text in texts]


def twice(difference: float) -> float:
    """Round twice an observed difference up: the tolerance of int8 on other machines and in other batches."""
    return math.ceil(2e3 * difference) / 1e3
