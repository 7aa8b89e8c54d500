"""Image classification: CIFAR-10, vision transformers and convolutional networks, and image models of Hugging Face."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from export.closest import closest_first
from export.conversion.comparison.explanation import Arrays
from export.conversion.comparison.requirements import MIN_COMPARED
from export.conversion.golden_images import golden_images, made_up_images
from export.conversion.model_folder.opening import image_classification_of
from export.conversion.model_folder.task import Preprocessing
from export.conversion.model_source import ImageClassifierSource, Labelled, image_source_of_run
from export.data.image_classification import EncodedImages, ImageClassificationData, encoded
from export.data.own.images import ImageFilesData, ImageRequest, load_images, rebuild_images
from export.data.sets.description import DataSet
from export.data.sets.images import load_image_set, read_images
from export.markdown import table
from export.networks.image import VisionTransformer
from export.onnx_graphs.explanation_modules import ExplainedVisionTransformer
from export.onnx_graphs.import_weights import StoredNetwork
from export.task_table import IMAGE_CLASSIFICATION
from export.tasks.classification import ClassificationTask
from export.tasks.own.images import conversion_of_own_images, preparation_of, saved_preparation
from export.tasks.run_tables import HOW, accuracy, best_first, how
from export.tasks.task import OwnOptions, Records, ReportSection, Target
from export.training.fine_tuning.images.run import fine_tune_images, measure_images
from export.training.fine_tuning.images.settings import ImageFineTuneConfig, ImageShape, recipe_for
from export.training.image_classifier import JPEG_QUALITY, NETWORKS, ImageTrainConfig, measure, train_image_classifier
from export.training.run_folder import read_result
from export.training.trainer import this_device
from model_store.folder import GoldenExample, Manifest

NUM_COMPARED_IMAGES = 2_000  # of the 10,000 test images
NUM_NOISE_IMAGES = 6
MAX_NAMED = 5  # labels in a message


def report_section(records: Records) -> str:
    """Write the section on the classifiers of CIFAR-10, best first."""
    columns = (
        "run",
        "network",
        "teacher",
        "parameters",
        "multiply-accumulates per image",
        "accuracy % (standard error)",
        "JPEG",
        "moved",
        "calibration error",
        *HOW,
    )
    rows = [
        [
            f"[{name}](runs/{name}.json)",
            record["network"],
            record["config"]["teacher"] or "none",
            f"{record['num_parameters'] / 1e6:.2f} M",
            f"{record['multiply_accumulates'] / 1e6:.0f} M",
            accuracy(record),
            f"{100 * record['quality_jpeg']['accuracy']:.2f}",
            f"{100 * record['quality_moved']['accuracy']:.2f}",
            f"{record['quality']['expected_calibration_error']:.4f}",
            *how(record),
        ]
        for name, record in best_first(records)
    ]
    classes = []
    for name, record in records.items():
        matrix = record["quality"]["confusion_matrix"]
        for number, label in enumerate(record["labels"]):
            right, predicted = matrix[number][number], sum(row[number] for row in matrix)
            precision, recall = right / max(1, predicted), right / max(1, sum(matrix[number]))
            classes.append([name, label, f"{100 * precision:.1f}", f"{100 * recall:.1f}"])
    of_any = next(iter(records.values()))
    lines = [
        "",
        "## Images (CIFAR-10)",
        "",
        "The epoch of each run was chosen on images held out of the training split. Accuracy is measured on the test"
        " split: in the first accuracy column on the original images, under `JPEG` on the same images after JPEG"
        f" compression (quality {of_any['quality_jpeg']['jpeg_quality']}), under `moved` on the same images shifted by"
        f" {of_any['quality_moved']['shift_pixels']} pixels down and to the right. The weights were rounded to half"
        " precision before the measurement, as they are served. A run with a teacher also learns from the predictions"
        " of that model.",
        *table(columns, rows),
        "",
        "Precision and recall of each class on the test split:",
        *table(("run", "class", "precision %", "recall %"), classes),
        "",
        "![validation accuracy by minutes of training](models-cifar10-curves.png)",
        "",
        "![confusion matrices](models-cifar10-confusion.png)",
    ]
    return "\n".join(lines) + "\n"


class ImageClassification(ClassificationTask[ImageTrainConfig | ImageFineTuneConfig]):
    """Image classifiers."""

    name = IMAGE_CLASSIFICATION
    networks = {name: (ImageTrainConfig, shape) for shape, (name, _) in NETWORKS.items()} | {
        "image-encoder": (ImageFineTuneConfig, ImageShape)
    }
    own_options = ("path_column", "label_column", "problem")
    explained_network = VisionTransformer
    report = ReportSection(
        place=3, subject="cifar10", curve_measure="accuracy", write=report_section, has_confusion=True
    )

    def load_data(self, key: str) -> ImageClassificationData:
        """Load a described data set."""
        return load_image_set(key)

    def train(
        self,
        data: ImageClassificationData | ImageFilesData,
        config: ImageTrainConfig | ImageFineTuneConfig,
        run_dir: Path,
        console: Console,
        time_budget_s: float,
        command: str,
    ) -> bool:
        """Train a network of this repository on a described data set, or one of `transformers` on images of one's own.

        Raises:
            ValueError: the recipe's network is not for this data, or the start is no image model.
        """
        if isinstance(data, ImageFilesData) != isinstance(config, ImageFineTuneConfig):
            raise ValueError(
                "images of your own are trained with the network 'image-encoder', and described data sets with the"
                " others: name another recipe"
            )
        if isinstance(data, ImageFilesData):
            assert isinstance(config, ImageFineTuneConfig)
            loaded = preparation_of(config.start_from)
            return fine_tune_images(data, config, loaded, run_dir, console, time_budget_s, command)
        assert isinstance(config, ImageTrainConfig)
        return train_image_classifier(data, config, run_dir, console, time_budget_s, command)

    def measure(self, run_dir: Path, result: Mapping[str, Any], console: Console) -> dict[str, Any]:
        """Measure on the test split; images of one's own on the split that is reported."""
        if document := result.get("data_document"):
            return measure_images(run_dir, rebuild_images(document), saved_preparation(run_dir), this_device())
        return measure(run_dir, read_images(self.known_data(run_dir, result)), this_device())

    def load_own(self, options: OwnOptions) -> ImageFilesData:
        """Read labelled images of one's own."""
        return load_images(ImageRequest(**options.request(*self.own_options)))

    def recipe_for(self, data: ImageFilesData, start_from: str) -> tuple[str, str]:
        """Choose by the number of training images and by the start."""
        return recipe_for(len(data.train), start_from)

    def convert(self, run_dir: Path, target: Target, console: Console) -> None:
        """Convert a finished run; one on images of one's own is compared and measured on its own held-out images."""
        result = read_result(run_dir)
        if not result.get("data_document"):
            super().convert(run_dir, target, console)
            return
        source, options = conversion_of_own_images(run_dir, result)
        self.write_model(source, target, console, **options)

    def source_of_run(self, run_dir: Path) -> ImageClassifierSource:
        """Load a finished run."""
        return image_source_of_run(run_dir)

    def measured_inputs(self, described: DataSet) -> dict[str, Any]:
        """Load the test split as image files, as a client would send them."""
        test = read_images(described).test
        plain = encoded(test, "PNG")
        return {
            "compare_on": plain.inputs[:NUM_COMPARED_IMAGES],
            "labelled": plain,
            "split": "test",
            "also_measured_on": {
                f"the test split as JPEG of quality {JPEG_QUALITY}": encoded(test, "JPEG", quality=JPEG_QUALITY)
            },
        }

    def made_up_inputs(self, count: int) -> list[bytes]:
        """Draw image files."""
        return made_up_images(count)

    def load(self, source: str, validate_on: str | None, target: Target, console: Console) -> None:
        """Convert an image classifier of Hugging Face or timm, measured on all images of `validate_on`.

        Raises:
            ValueError: the images have a label that the model does not know, or several labels each.
        """
        from export.conversion.checkpoints.image_models import (
            image_source_of,  # imports transformers, which takes seconds
        )

        loaded = image_source_of(source)
        if validate_on is not None and loaded.settings is not None:
            raise ValueError(f"--validate-on: the model is of the problem {loaded.settings.problem}: not measured yet")
        labelled = None if validate_on is None else labelled_images(validate_on, loaded.labels)
        given = [] if labelled is None else labelled.inputs
        compare_on = given + made_up_images(max(0, MIN_COMPARED - len(given)))
        about = {} if validate_on is None else {"measured_on": Path(validate_on).name}
        self.write_model(loaded, target, console, compare_on=compare_on, labelled=labelled, about=about)

    def check_validation_set(self, name: str) -> None:
        """Take any folder or file; what is in it is checked when it is read."""
        if not Path(name).exists():
            raise ValueError(
                f"--validate-on {name}: there is no such folder or file; for images it is a folder with a folder for"
                " each label, or a table of paths and labels"
            )

    def material(self, known: Collection[Any]) -> Mapping[str, Labelled] | None:
        """Load the test split as PNG files."""
        described = self.known_among(known)
        return {"test": encoded(read_images(described).test, "PNG")} if described else None

    def explained(self, stored: StoredNetwork, folder: Path) -> ExplainedVisionTransformer:
        """Explain a class by patches."""
        assert isinstance(stored.module, VisionTransformer)
        return ExplainedVisionTransformer(stored.module)

    def input_feeds(self, folder: Path, manifest: Manifest, example: GoldenExample) -> Arrays:
        """Return the pixels."""
        preprocessing = self.preprocessing(folder, manifest)
        return {"pixel_values": preprocessing.item(preprocessing.golden_input(example)).pixels_CHW}

    def preprocessing(self, folder: Path, manifest: Manifest) -> Preprocessing:
        """Decode and normalise image files."""
        images = image_classification_of(folder, manifest)
        return Preprocessing(
            golden_input=lambda example: example.inputs["image"].encode(),
            item=lambda given: images.preprocess(given, field="image"),
            collate=images.collate,
        )

    def invented_inputs(self, folder: Path) -> Sequence[bytes]:
        """Draw noise, and every kind of file that clients send."""
        return [*made_up_images(NUM_NOISE_IMAGES), *golden_images().values()]


def labelled_images(source: str, labels: Sequence[str]) -> EncodedImages:
    """Read labelled images, with the class numbers of a model.

    Args:
        source: a folder with a folder for each label, or a table of paths and labels.
        labels: the model's classes, by number.

    Raises:
        ValueError: the images cannot be read, have several labels each, or a label that the model does not know.
    """
    data = load_images(ImageRequest(train=source))
    if data.problem != "single_label_classification":
        raise ValueError(f"{source}: the images have several labels each, which are not measured yet")
    if unknown := [label for label in data.label_names if label not in labels]:
        raise ValueError(
            f"{source} has the label {unknown[0]!r}, which the model does not know; it knows {len(labels)},"
            f" such as {', '.join(closest_first(unknown[0], labels)[:MAX_NAMED])}"
        )
    numbers = [labels.index(label) for label in data.label_names]
    # The splits are those of a training; here all images are measured on.
    splits = [split for split in (data.train, data.validation, data.test) if split is not None]
    return EncodedImages(
        [file for split in splits for file in split.inputs],
        [numbers[number] for split in splits for number in split.labels],
    )


TASK = ImageClassification()
