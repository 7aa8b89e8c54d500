"""Replays all golden examples of a folder when its model is loaded.

The replay warms up the engine and proves preprocessing and answers: a model that passes answers as the original
PyTorch model did.
"""

from collections.abc import Callable, Sequence
from typing import Any

from service.models.golden import GoldenLogits, GoldenTranslations
from service.scheduling.decoder_thread import RunningBatches
from service.tasks.translation_search import GOLDEN_SEARCHES, Sentence


def replay_golden_logits(golden: GoldenLogits, run: Callable[[list[Any]], list[Any]], *, together: bool) -> list[Any]:
    """Compute the golden examples one by one and in one batch, and compare the logits.

    Args:
        golden: the examples.
        run: the engine call, from items to their logits [C].
        together: compare the logits of the batch as well.

    Returns:
        the examples' items.

    Raises:
        FolderError: the input tensors differ, or the logits differ by more than the manifest allows.
    """
    items = [golden.item(number) for number in range(golden.num_examples)]
    answers = {"alone": [run([item])[0] for item in items]}
    if together:
        answers["in a batch"] = run(items)
    for how, logits in answers.items():
        for number, logits_C in enumerate(logits):
            golden.difference(number, logits_C, how)
    return items


def replay_golden_translations(
    golden: GoldenTranslations, open_batches: Callable[[], RunningBatches], max_rows: int
) -> None:
    """Translate the golden examples with each search, together and (greedy search only) one by one, and compare.

    Args:
        golden: the examples.
        open_batches: makes empty running batches.
        max_rows: largest number of rows of a running batch.

    Raises:
        FolderError: the input ids differ, or a translation is less likely than the golden one.
    """
    for search, request in GOLDEN_SEARCHES.items():
        num_beams = request.num_beams or 1
        ways = {"alone": 1, "in a batch": max(1, max_rows // num_beams)}
        if num_beams > 1:
            del ways["alone"]  # the beams of one sentence already share a batch, and loading takes time
        for how, together in ways.items():
            sentences = [golden.item(number, search) for number in range(golden.num_examples)]
            running = open_batches()
            for first in range(0, len(sentences), together):
                decode(running, sentences[first : first + together])
            for number, sentence in enumerate(sentences):
                golden.difference(number, sentence, how, search)


def decode(running: RunningBatches, sentences: Sequence[Sentence]) -> None:
    """Decode sentences to their end in a running batch that has no others."""
    running.join(sentences)
    decoding = list(sentences)
    while decoding:
        running.step()
        for sentence in [each for each in decoding if each.done]:
            running.leave(sentence)
            decoding.remove(sentence)
