"""Described data sets of texts: rows, names of classes, further labelled texts."""

import datasets
import pytest

from export.data.sets.description import DataSet
from export.data.sets.texts import load_everyday, load_text_set, read_texts


def test_splits_are_read_by_the_names_of_the_description(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts are stripped; without names of its own the description takes those of the data set."""
    root = tmp_path_factory.mktemp("sets")
    features = datasets.Features({"words": datasets.Value("string"), "kind": datasets.ClassLabel(names=["no", "yes"])})
    for split, rows in {"train": [(" a ", 0), ("b", 1)], "validation": [("c", 1)]}.items():
        table = datasets.Dataset.from_dict(
            {"words": [text for text, _ in rows], "kind": [label for _, label in rows]}, features
        )
        (root / "mine").mkdir(exist_ok=True)
        table.to_parquet(root / "mine" / f"{split}.parquet")
    monkeypatch.setenv("HEED_DATASETS", str(root))
    described = DataSet(
        key="mine",
        name="Mine",
        task="text-classification",
        folder="mine",
        columns={"text": "words", "label": "kind"},
        splits={"train": "train", "validation": "validation"},
    )
    data = read_texts(described)
    assert (data.name, data.label_names) == ("Mine", ["no", "yes"])
    assert (data.train.texts, data.train.labels, data.validation.texts) == (["a", "b"], [0, 1], ["c"])
    with pytest.raises(ValueError, match="there is no data set 'sst3' for text-classification; there are sst2"):
        load_text_set("sst3")


def test_further_texts_get_the_numbers_of_their_labels() -> None:
    """The everyday sentences of this repository have both labels."""
    texts = load_everyday()
    assert len(texts) > 50
    assert set(texts.labels) == {0, 1}
