"""Labelled images of one's own, from folders and tables to splits and back from their document."""

import csv
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from export.data.own.images import ImageRequest, LabelledImageFiles, decoded_size, load_images, rebuild_images
from export.data.own.refusals import DataRefused

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40)}


def draw(path: Path, colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (24, 16)) -> Path:
    """Draw a noisy image of a colour."""
    noise = np.random.default_rng(seed).integers(-25, 25, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)
    return path


def class_folders(root: Path, count: int = 10, seed: int = 0) -> str:
    """Draw a folder for each colour."""
    for label, (name, colour) in enumerate(COLOURS.items()):
        for number in range(count):
            draw(root / name / f"{number}.png", colour, seed + 100 * label + number)
    return str(root)


def csv_file(path: Path, rows: list[tuple[str, str]]) -> str:
    """Write a table of paths and labels."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return str(path)


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    """Hidden files and texts are left out; the latter are counted."""
    root = class_folders(tmp_path / "colours")
    (tmp_path / "colours" / "red" / ".DS_Store").write_text("x")
    (tmp_path / "colours" / "red" / "notes.txt").write_text("x")
    data = load_images(ImageRequest(train=root))
    assert data.name == "colours" and data.label_names == ["green", "red"] and data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 4)
    for part in (data.train, data.validation, data.test):
        assert [Path(str(file)).parent.name for file in part.files] == [
            data.label_names[label] for label in part.labels
        ]
    assert data.document["counts"]["files_of_other_kinds"] == 1
    assert data.document["image_sizes"] == {
        "smallest": [16, 24], "largest": [16, 24], "median": [16, 24], "most_frequent": [16, 24],
        "most_frequent_count": 20,
    }  # fmt: skip
    assert rebuild_images(json.loads(json.dumps(data.document))) == data


def test_numbers_are_labels(tmp_path: Path) -> None:
    """Names of folders and columns of tables alike: there is no regression of images."""
    for number in range(60):
        for copy in range(2):
            draw(tmp_path / "a" / f"{number}.5" / f"{copy}.png", (number, 0, copy * 99), number, (4, 4))
    assert len(load_images(ImageRequest(train=str(tmp_path / "a"))).label_names) == 60
    rows = [(f"a/{number}.5/{copy}.png", str(number)) for number in range(60) for copy in range(2)]
    data = load_images(ImageRequest(train=csv_file(tmp_path / "a.csv", rows)))
    assert data.label_names == [str(number) for number in range(60)]


def test_folders_of_splits_are_the_splits(tmp_path: Path) -> None:
    """A missing one is made of training images; a folder that moved is found by its name."""
    class_folders(tmp_path / "a" / "train")
    class_folders(tmp_path / "a" / "val", 3, seed=1000)
    data = load_images(ImageRequest(train=str(tmp_path / "a")))
    assert len(data.validation) == 6 and data.test is not None and len(data.test) == 4 and len(data.train) == 16
    (tmp_path / "b").mkdir()
    (tmp_path / "a").rename(tmp_path / "b" / "a")
    moved = rebuild_images(data.document, tmp_path / "b")
    assert moved.test is not None and moved.test.inputs == [
        Path(str(file).replace(str(tmp_path), str(tmp_path / "b"), 1)).read_bytes() for file in data.test.files
    ]


def test_changed_images_are_refused(tmp_path: Path) -> None:
    """The splits of a folder are those of its images."""
    data = load_images(ImageRequest(train=class_folders(tmp_path / "a")))
    draw(tmp_path / "a" / "red" / "0.png", (0, 0, 0), 5)
    with pytest.raises(DataRefused, match="the train source has other rows"):
        rebuild_images(data.document)


def test_a_table_of_paths_with_several_labels(tmp_path: Path) -> None:
    """Paths begin at the folder of the table."""
    rows = []
    for number in range(24):
        draw(tmp_path / "files" / f"{number}.png", (number * 9, 99, 9), number)
        rows.append((f"files/{number}.png", ["warm", "warm|bright", ""][number % 3]))
    data = load_images(ImageRequest(train=csv_file(tmp_path / "a.csv", rows)))
    assert data.problem == "multi_label_classification" and data.label_names == ["bright", "warm"]
    every = [labels for part in (data.train, data.validation, data.test) if part for labels in part.labels]
    assert sorted(every) == sorted([[1], [0, 1], []] * 8)
    assert rebuild_images(data.document) == data


def test_images_that_cannot_be_read_are_named_or_skipped(tmp_path: Path) -> None:
    """A cut file, a text, another format, and one that is not there."""
    rows = [(f"red/{number}.png", "red") for number in range(5)]
    class_folders(tmp_path)
    rows += [(f"green/{number}.png", "green") for number in range(5)]
    whole = (tmp_path / "red" / "6.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.gif")
    bad = [("cut.png", "red"), ("text.png", "red"), ("b.gif", "red"), ("none.png", "red"), ("", "red")]
    path = csv_file(tmp_path / "a.csv", rows + bad)
    with pytest.raises(
        DataRefused, match=r"5 of 15 images cannot be used: .*a.csv, line 12: .*cut.png is no whole"
    ) as refused:
        load_images(ImageRequest(train=path))
    for words in ("text.png is no whole image", "b.gif is GIF", "none.png: there is no such file", "path is empty"):
        assert words in str(refused.value)
    data = load_images(ImageRequest(train=path, skip_bad_rows=True))
    assert data.document["counts"]["skipped_rows"] == 5 and data.document["splits"]["train"]["rows"] == 6


def test_copies_of_a_file_stay_in_one_split(tmp_path: Path) -> None:
    """By their bytes."""
    root = class_folders(tmp_path / "a")
    for number in range(5):
        (tmp_path / "a" / "red" / f"copy{number}.png").write_bytes((tmp_path / "a" / "red" / "0.png").read_bytes())
    data = load_images(ImageRequest(train=root))
    assert data.document["counts"]["duplicate_rows"] == 5
    homes = [
        name
        for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test))
        if part and any("copy" in str(file) for file in part.files)
    ]
    assert len(homes) == 1


def test_pixels_are_those_that_the_server_computes(tmp_path: Path) -> None:
    """Images have the size that is asked for; transparent parts are white."""
    paths = [draw(tmp_path / "a.png", (200, 30, 30), 1, (8, 8)), tmp_path / "b.png"]
    Image.new("RGBA", (40, 20), (0, 0, 0, 0)).save(paths[1])
    pixels_NCHW = LabelledImageFiles(list(paths), [0, 1]).pixels(8, 8)
    assert pixels_NCHW.shape == (2, 3, 8, 8)
    assert (pixels_NCHW[0].transpose(1, 2, 0) == np.asarray(Image.open(paths[0]))).all()
    assert (pixels_NCHW[1] == 255).all()


def test_photographs_have_the_size_at_which_they_are_shown(tmp_path: Path) -> None:
    """Cameras write the orientation beside the pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert decoded_size(tmp_path / "a.jpg")[0] == (40, 20)


def test_images_inside_of_a_data_set(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have no paths; class names come with them."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setenv("HEED_DATASETS", str(tmp_path))
    files = []
    for number in range(12):
        buffer = BytesIO()
        Image.new("RGB", (5, 4), (20 * number, 0, 0)).save(buffer, "PNG")
        files.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])})
    rows = datasets.Dataset.from_dict({"img": files, "label": [number // 6 for number in range(12)]}, features=features)
    (tmp_path / "shades").mkdir()
    rows.to_parquet(tmp_path / "shades" / "train.parquet")
    data = load_images(ImageRequest(train="someone/shades", path_column="img"))
    assert data.label_names == ["dark", "light"] and data.train.pixels(4, 5).shape == (8, 3, 4, 5)
    assert rebuild_images(data.document) == data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problem": "regression"}, "image-classification takes single_label_classification and multi_label"),
        ({"train": "empty"}, "has no folders: a folder for each label"),
        ({"train": "hollow"}, "hollow/red has no images; the names of images end in .jpg"),
        ({"train": "one"}, "every row has the label 'red'"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """Each in a sentence."""
    class_folders(tmp_path / "good", 3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "red").mkdir(parents=True)
    draw(tmp_path / "one" / "red" / "a.png", (1, 2, 3), 0)
    train = str(tmp_path / options.pop("train", "good"))
    with pytest.raises(DataRefused, match=message):
        load_images(ImageRequest(train=train, **options))
