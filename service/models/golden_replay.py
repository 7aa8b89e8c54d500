"""Replays all golden examples of a folder when its model is loaded.

The replay warms up the engine and proves preprocessing and answers: a model that passes answers as the original
PyTorch model did.
"""

from collections.abc import Callable, Sequence
from typing import Any

from service.models.golden import GoldenExamples
from service.scheduling.decoder_messages import Sentence
from service.scheduling.decoder_thread import RunningBatches


def replay_in_calls(golden: GoldenExamples, run: Callable[[list[Any]], list[Any]], *, together: bool) -> list[Any]:
    """Compute the golden examples one by one and in one batch, and compare the results.

    Args:
        golden: the examples.
        run: the engine call, from items to their results.
        together: compare the results of the batch as well.

    Returns:
        the examples' items.

    Raises:
        FolderError: the input tensors differ, or a result differs by more than the manifest allows.
    """
    items = [golden.item(number) for number in range(golden.num_examples)]
    answers = {"alone": [run([item])[0] for item in items]}
    if together:
        answers["in a batch"] = run(items)
    for how, results in answers.items():
        for number, result in enumerate(results):
            golden.difference(number, result, how)
    return items


def replay_in_steps(golden: GoldenExamples, open_batches: Callable[[], RunningBatches], max_rows: int) -> None:
    """Decode the golden examples with each search, together and (in one row each) one by one, and compare.

    Args:
        golden: the examples.
        open_batches: makes empty running batches.
        max_rows: largest number of rows of a running batch.

    Raises:
        FolderError: the input ids differ, or a result differs by more than the manifest allows.
    """
    for search in golden.searches:
        rows = golden.item(0, search).rows
        ways = {"alone": 1, "in a batch": max(1, max_rows // rows)}
        if rows > 1:
            del ways["alone"]  # the beams of one item already share a batch, and loading takes time
        for how, together in ways.items():
            items = [golden.item(number, search) for number in range(golden.num_examples)]
            running = open_batches()
            for first in range(0, len(items), together):
                decode(running, items[first : first + together])
            for number, item in enumerate(items):
                golden.difference(number, item, how, search)


def decode(running: RunningBatches, sentences: Sequence[Sentence]) -> None:
    """Decode sentences to their end in a running batch that has no others."""
    running.join(sentences)
    decoding = list(sentences)
    while decoding:
        running.step()
        for sentence in [each for each in decoding if each.done]:
            running.leave(sentence)
            decoding.remove(sentence)
