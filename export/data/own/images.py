"""Labelled images of one's own: a folder of class folders, or a table with paths and labels.

Files stay files until they are asked for, because a data set of photographs does not fit into memory as pixels.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.data.own.documents import check_same_splits, write_document
from export.data.own.labels import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    Problem,
    check_known,
    check_labels_differ,
    counts_by_label,
    find_problem,
    lacks_label,
    names_of,
    read_labels,
)
from export.data.own.refusals import DataRefused, first_line, listed
from export.data.own.sources import Request, licence_of, name_of, read_sources
from export.data.own.splits import TEST, TRAIN, VALIDATION, arrange, digest
from export.data.own.tables import Table
from export.task_table import IMAGE_CLASSIFICATION
from service.tasks.images.image_classification import ImageClassification
from service.tasks.images.image_file import FORMATS, JPEGS, size_upright
from service.tasks.images.preprocessing import ImageSize, PreprocessorConfig

SPLITS = (TRAIN, VALIDATION, TEST)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # of FORMATS, which the server takes
FOLDER_NAMES = {TRAIN: ("train",), VALIDATION: ("validation", "valid", "val"), TEST: ("test",)}

ImageFile = Path | bytes  # bytes are the content of a file inside a data set of the hub


@dataclass(frozen=True, kw_only=True)
class ImageRequest(Request):
    """A request for labelled images. A source is a folder of class folders, or a table with paths.

    A folder with `train` and `validation` or `test` in it is taken as these splits. Paths of a table begin at the
    folder of the table.
    """

    path_column: str = "path"
    label_column: str = "label"
    problem: str | None = None


@dataclass(frozen=True)
class LabelledImageFiles:
    """One split: image files, and their class numbers or sorted lists of class numbers."""

    files: list[ImageFile]
    labels: list[Any]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def inputs(self) -> list[bytes]:
        """The files as a client would send them, all read into memory."""
        return [content_of(file) for file in self.files]

    def pixels(self, height: int, width: int) -> NDArray[np.uint8]:
        """Decode all images as the server does: upright, stretched to a size, on white; uint8 [N, 3, H, W]."""
        return self.prepared(
            PreprocessorConfig(
                size=ImageSize(height, width),
                do_resize=True,
                resample=2,
                do_rescale=True,
                rescale_factor=1 / 255,
                do_normalize=True,
                image_mean=(0, 0, 0),
                image_std=(1, 1, 1),
            )
        )

    def prepared(self, settings: PreprocessorConfig) -> NDArray[np.uint8]:
        """Decode, resize and crop all images as the server does with these settings; uint8 [N, 3, H, W]."""
        task = ImageClassification(settings, labels=[], graph_input="")
        pixels_NCHW = np.empty((len(self), 3, *settings.pixels), np.uint8)
        for number, file in enumerate(self.files):
            field = str(file) if isinstance(file, Path) else f"image {number}"
            pixels_NCHW[number] = task.levels(content_of(file), field=field).transpose(2, 0, 1)
        return pixels_NCHW


@dataclass(frozen=True)
class ImageFilesData:
    """A data set of image files, with the names of its classes by number.

    `problem` is "single_label_classification" or "multi_label_classification". Epochs, seeds, temperature and
    thresholds are chosen on `validation`; `test` chooses nothing. `document` records where the images come from, and in
    `image_sizes` how large they are.
    """

    name: str
    label_names: list[str]
    train: LabelledImageFiles
    validation: LabelledImageFiles
    test: LabelledImageFiles | None
    problem: str
    document: dict[str, Any]

    @property
    def reported(self) -> LabelledImageFiles:
        """The split that figures are reported on: the test split, if there is one."""
        return self.validation if self.test is None else self.test

    @property
    def reported_name(self) -> str:
        """The name of the split that figures are reported on."""
        return "validation" if self.test is None else "test"


@dataclass(frozen=True)
class _Checked:
    """The images of one source that can be read."""

    files: list[ImageFile]
    sums: list[str]
    sizes: list[tuple[int, int]]  # height and width
    sets: list[list[str]]  # labels
    rows: list[int]
    skipped: int


def load_images(request: ImageRequest) -> ImageFilesData:
    """Find labelled images, decode each one once, split them, and record where they come from.

    Copies are files with the same bytes.

    Raises:
        DataRefused: the data cannot be used; unreadable files are named, unless bad rows are skipped.
    """
    tables, other_files = _tables(request)
    problem = _problem(tables[TRAIN], request)
    kind, several = problem.kind, problem.kind == MULTI_LABEL
    request = replace(request, problem=kind)
    checked = {name: _check(table, request, kind) for name, table in tables.items()}
    names = names_of([name for each in checked[TRAIN].sets for name in each])
    check_labels_differ(checked[TRAIN].sets, kind, tables[TRAIN].name)
    for name in set(checked) - {TRAIN}:
        check_known(tables[name], request.label_column, checked[name].rows, checked[name].sets, set(names))
    arrangement = arrange(
        {name: part.sums for name, part in checked.items()},
        {name: [frozenset(each) for each in part.sets] for name, part in checked.items()},
        request.seed,
        several=several,
    )
    numbers = {name: number for number, name in enumerate(names)}
    parts: dict[str, LabelledImageFiles] = {}
    splits: dict[str, dict[str, Any]] = {}
    for name in SPLITS:
        source, rows = checked[arrangement.sources[name]], arrangement.rows[name]
        labels = [sorted(numbers[each] for each in source.sets[row]) for row in rows]
        part = LabelledImageFiles(
            [source.files[row] for row in rows], labels if several else [each[0] for each in labels]
        )
        counts = counts_by_label(names, part.labels, kind)
        sums = digest([[source.sums[row] for row in rows], part.labels])
        parts[name] = part
        splits |= {name: {"rows": len(part), "sha256": sums, "labels": counts}} if len(part) else {}
    _check_not_empty(parts, tables[TRAIN])
    document = write_document(
        task=IMAGE_CLASSIFICATION,
        request=request.as_dict(),
        files={name: _record(table, checked[name]) for name, table in tables.items()},
        labels=names,
        licence=licence_of(request, tables),
        arrangement=arrangement,
        splits=splits,
        counts={"skipped_rows": sum(each.skipped for each in checked.values()), "files_of_other_kinds": other_files},
    )
    document["problem"] = {"kind": kind, "reason": problem.reason}
    document["image_sizes"] = _sizes([size for part in checked.values() for size in part.sizes])
    test = parts[TEST] if len(parts[TEST]) else None
    return ImageFilesData(name_of(request), names, parts[TRAIN], parts[VALIDATION], test, kind, document)


def rebuild_images(document: Mapping[str, Any], folder: Path | None = None) -> ImageFilesData:
    """Read the same splits again from the document that `load_images` gave them.

    Args:
        document: the record of the first time.
        folder: where the tables lie now, if they were moved together with their images. Folders of class folders are
            found at the path of the first time, or beside each other in `folder`.

    Raises:
        DataRefused: a table or an image is gone or has changed.
    """
    request = ImageRequest.of_document(document, folder)
    if folder is not None:
        moved: dict[str, Any] = {
            name: str(folder / Path(source).name)
            for name, source in request.sources.items()
            if "path" not in document["files"].get(name, {})
        }
        request = replace(request, **moved)
    data = load_images(request)
    check_same_splits(document, data.document)
    return replace(data, document=dict(document))


def _tables(request: ImageRequest) -> tuple[dict[str, Table], int]:
    """Return a table of paths and labels for each source, and the number of files that are no images by name."""
    sources, others = dict(request.sources), 0
    tables: dict[str, Table] = {}
    root = Path(request.train)
    found = {name: [root / each for each in names if (root / each).is_dir()] for name, names in FOLDER_NAMES.items()}
    if root.is_dir() and found[TRAIN] and (found[VALIDATION] or found[TEST]):
        inner = {
            name: str(paths[0]) for name, paths in found.items() if paths and (name == TRAIN or name not in sources)
        }
        sources |= inner
    for name, source in sources.items():
        if Path(source).is_dir():
            tables[name], left_out = _of_folder(Path(source), request)
            others += left_out
    in_tables = {name: source for name, source in sources.items() if name not in tables}
    for name, table in read_sources(in_tables, [request.path_column, request.label_column]).items():
        if name not in tables:
            files = _files(table, request, in_tables.get(name, ""))
            tables[name] = replace(table, columns={**table.columns, request.path_column: files})
    return tables, others


def _of_folder(root: Path, request: ImageRequest) -> tuple[Table, int]:
    classes = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise DataRefused(
            f"{root} has no folders: a folder for each label with its images is taken, or a table of paths"
        )
    paths, labels, others = [], [], 0
    for folder in classes:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        images = [path for path in files if path.suffix.lower() in SUFFIXES]
        if not images:
            raise DataRefused(f"{folder} has no images; the names of images end in {', '.join(SUFFIXES)}")
        others += len(files) - len(images)
        paths += images
        labels += [folder.name] * len(images)
    columns: dict[str, list[Any]] = {request.path_column: paths, request.label_column: labels}
    return Table(str(root), columns, range(1, len(paths) + 1), "image", {"name": root.name, "rows": len(paths)}), others


def _files(table: Table, request: ImageRequest, source: str) -> list[ImageFile | None]:
    files: list[ImageFile | None] = []
    for row, value in enumerate(table.column(request.path_column)):
        # An image of the `datasets` library has a content, or the path of a file.
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
        if path is not None and not isinstance(path, str):
            raise DataRefused(f"{table.place(row, request.path_column)}: {str(value)[:60]!r} is not a path")
        found = Path(source).parent / path if path and path.strip() else None
        files.append(found if content is None else content)
    return files


def _problem(train: Table, request: ImageRequest) -> Problem:
    if request.problem:
        problem = Problem(request.problem, "it was asked for")
    elif train.unit == "image":
        problem = Problem(SINGLE_LABEL, "each folder is a label")
    else:
        problem = find_problem(train.column(request.label_column), request.label_column)
        if problem.kind == REGRESSION:
            problem = Problem(SINGLE_LABEL, f"numbers in column {request.label_column!r} are labels of images")
    if problem.kind not in {SINGLE_LABEL, MULTI_LABEL}:
        raise DataRefused(
            f"{problem.reason}: {IMAGE_CLASSIFICATION} takes {SINGLE_LABEL} and {MULTI_LABEL}, not {problem.kind}"
        )
    return problem


def _check(table: Table, request: ImageRequest, kind: str) -> _Checked:
    """Decode every image, and read the labels of those that can be decoded."""
    labels, files = table.column(request.label_column), table.column(request.path_column)
    troubles: list[str] = []
    rows, sums, sizes = [], [], []
    for row, file in enumerate(files):
        if file is None or lacks_label(labels[row], kind):
            troubles.append(f"{table.place(row)}: the {'path' if file is None else 'label'} is empty")
            continue
        try:
            size, sha256 = decoded_size(file)
        except DataRefused as error:
            troubles.append(str(error) if table.unit == "image" else f"{table.place(row)}: {error}")
            continue
        rows.append(row)
        sums.append(sha256)
        sizes.append(size)
    if troubles and not request.skip_bad_rows:
        raise DataRefused(f"{len(troubles)} of {len(table)} images cannot be used: {listed(troubles)}")
    if not rows:
        raise DataRefused(f"{table.name}: no image can be used")
    read = read_labels(table, request.label_column, rows, kind)
    sets = [list(each) if isinstance(each, list) else [str(each)] for each in read]
    return _Checked([files[row] for row in rows], sums, sizes, sets, rows, len(troubles))


def content_of(file: ImageFile) -> bytes:
    """Return the bytes of an image file."""
    return file.read_bytes() if isinstance(file, Path) else file


def decoded_size(file: ImageFile) -> tuple[tuple[int, int], str]:
    """Decode an image file; return its height and width as it is shown, and the sha256 of the file.

    Raises:
        DataRefused: there is no such file, or it is no whole image of a format that the server takes.
    """
    name = str(file) if isinstance(file, Path) else "the image"
    if isinstance(file, Path) and not file.is_file():
        raise DataRefused(f"{name}: there is no such file")
    content = content_of(file)
    try:
        with Image.open(io.BytesIO(content)) as image:
            image_format = image.format
            image.load()
            width, height = size_upright(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataRefused(f"{name} is no whole image ({first_line(error)})") from error
    if image_format not in {*FORMATS, *JPEGS}:
        raise DataRefused(f"{name} is {image_format}; {', '.join(FORMATS)} are taken")
    return (height, width), hashlib.sha256(content).hexdigest()


def _check_not_empty(parts: Mapping[str, LabelledImageFiles], table: Table) -> None:
    for name in (TRAIN, VALIDATION):
        if not len(parts[name]):
            raise DataRefused(
                f"{table.name}: {len(table)} images are too few to keep any for {name}; at least two different images"
                " of one label are needed"
            )


def _record(table: Table, checked: _Checked) -> dict[str, Any]:
    # The table's own sum says nothing about the images, so theirs are recorded too.
    images = digest([checked.sums, checked.sets])
    return table.record | ({"images_sha256": images} if "path" in table.record else {"sha256": images})


def _sizes(sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return the smallest, largest and middle height and width, and the most frequent size."""
    heights, widths = zip(*sizes, strict=True)
    (common, count), *_ = Counter(sizes).most_common(1)
    return {
        "smallest": [min(heights), min(widths)],
        "largest": [max(heights), max(widths)],
        "median": [int(np.median(heights)), int(np.median(widths))],
        "most_frequent": list(common),
        "most_frequent_count": count,
    }
