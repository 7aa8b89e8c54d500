"""Windows with tags, batches and entities: what is learned is what is served."""

import dataclasses

import numpy as np
import torch

from export.data.own.entities import words_of
from export.data.token_classification import Entity, LabelledEntities, TokenClassificationData
from export.training.fine_tuning.entities.run import entity_start
from export.training.fine_tuning.entities.settings import EntityTrainConfig
from export.training.fine_tuning.entities.task import (
    NOT_LABELLED,
    EntityTask,
    entities_of,
    labelled_tokens,
    rows_of_split,
    served_task,
)
from export.training.fine_tuning.settings import EncoderShape
from service.tasks.text.rows import RowResults

TEXTS = ["Ada Lovelace met Babbage in London.", "Nobody was in Paris or London.", "Nothing happened here, again."]
NAMES = {"Ada Lovelace": "PER", "Babbage": "PER", "London": "LOC", "Paris": "LOC"}
CPU = torch.device("cpu")


def made_up() -> TokenClassificationData:
    """Make texts with the entities of NAMES; one of them is longer than a window."""
    texts = [*TEXTS, " ".join(TEXTS * 4)]
    entities = [
        sorted(
            Entity(place, place + len(name), label)
            for name, label in NAMES.items()
            for place in range(len(text))
            if text.startswith(name, place)
        )
        for text in texts
    ]
    words = [words_of(text, found) for text, found in zip(texts, entities, strict=True)]
    split = LabelledEntities(texts, words, entities)
    return TokenClassificationData("made up", ["LOC", "PER"], split, split)


def config(**changes: object) -> EntityTrainConfig:
    """Settings of a tiny network with windows of 24 tokens."""
    shape = EncoderShape(d_model=16, num_layers=1, num_heads=2, d_ff=16, vocab_size=400)
    return dataclasses.replace(EntityTrainConfig(max_tokens=24, batch_size=3, model=shape), **changes)  # type: ignore[arg-type] # their fields'


def test_the_tags_of_the_tokens_are_the_entities_as_served() -> None:
    """Logits that say the tags become exactly the entities, also those of a text of several windows."""
    data = made_up()
    start = entity_start(data, config())
    served = served_task(start.tokenizer, data.tag_names, start.max_tokens)
    items = rows_of_split(served, data.train, "simple")
    assert [item.rows > 1 for item in items] == [False, False, False, True]
    empty = [RowResults(item, [np.zeros((part.length, 5), np.float32) for part in item.parts]) for item in items]
    _, tags_N = labelled_tokens(empty, data.train, data.tag_names)
    results, first = [], 0
    for item in items:
        rows = []
        for window in item.places:
            logits_TC = np.zeros((window.tokens.length, 5), np.float32)
            count = window.end - window.start
            logits_TC[np.arange(window.start, window.end), tags_N[first : first + count]] = 9.0
            first += count
            rows.append(logits_TC)
        results.append(RowResults(item, rows))
    assert entities_of(served, results) == data.train.entities


def test_first_tokens_alone_are_labelled_where_that_is_asked_for() -> None:
    """Each word then teaches once; the strategy of the measure is `first`."""
    data = made_up()
    short = LabelledEntities(data.train.texts[:3], data.train.words[:3], data.train.entities[:3])
    data = dataclasses.replace(data, train=short)
    pieces = EncoderShape(d_model=16, num_layers=1, num_heads=2, d_ff=16, vocab_size=60)  # most words are several
    tasks = []
    for kind in ("all", "first"):
        settings = config(labelled_tokens=kind, max_tokens=64, model=pieces)
        tasks.append(EntityTask(data, settings, entity_start(data, settings), CPU))
    counts = [sum(int((batch.tags_BT != NOT_LABELLED).sum()) for batch in task.batches(0)) for task in tasks]
    assert counts[0] > counts[1] == sum(map(len, short.words))
    assert [task.strategy for task in tasks] == ["simple", "first"]


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    """Dropped tokens are never those of entities."""
    data = made_up()
    task = EntityTask(data, config(token_dropout=0.9), entity_start(data, config()), CPU)
    first, again, other = ([batch.ids_BT for batch in task.batches(epoch)] for epoch in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    whole = EntityTask(data, config(), entity_start(data, config()), CPU)
    kept, all_of = (sum(int((batch.tags_BT > 0).sum()) for batch in each.batches(0)) for each in (task, whole))
    assert kept == all_of


def test_rare_tags_weigh_more_where_that_is_asked_for() -> None:
    """The loss of the same logits rises where the rare tags are wrong."""
    data = made_up()
    losses = []
    for weights in ("none", "balanced"):
        start = entity_start(data, config())
        task = EntityTask(data, config(class_weights=weights), start, CPU)
        batch = next(task.batches(0))

        class Outside(torch.nn.Module):
            """Says that every token is outside of entities."""

            def forward(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
                """Return the same logits for every token."""
                return torch.tensor([3.0, 0, 0, 0, 0]).expand(*ids_BT.shape, 5)

        losses.append(float(task.step(Outside(), batch).loss))
    assert losses[1] > losses[0]
