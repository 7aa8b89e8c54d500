"""Training and conversion that are stopped, or whose disk is full: one sentence, and nothing half written."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from export.outcome import FAILED, INTERRUPTED, TERMINATED
from tests.conftest import ROOT, START_S

SMALL = ["model.d_model=32", "model.num_layers=1", "model.d_ff=64"]
NUM_TRAINING, NUM_VALIDATION = 256, 2048
WORDS = ("good", "bad", "fine", "dull", "film", "plot", "actor", "scene", "end", "very", "hardly", "never", "always")
FILE_LIMIT_BYTES = 40_000  # less than a checkpoint or a graph of the small network, more than its record
TRAIN = ["train", "sentiment", "--run-dir"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Write a data set in the form of SST-2, with sentences of a few words; return the environment that names it."""
    import datasets

    folder = tmp_path_factory.mktemp("datasets")
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    (folder / "sst2/data").mkdir(parents=True)
    for split, count in (("train", NUM_TRAINING), ("validation", NUM_VALIDATION)):
        texts = [" ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 9)) for number in range(count)]
        rows = datasets.Dataset.from_dict(
            {"sentence": texts, "label": [number % 2 for number in range(count)]}, features=features
        )
        rows.to_parquet(str(folder / f"sst2/data/{split}-00000-of-00001.parquet"))
    return os.environ | {
        "HEED_DATASETS": str(folder),
        "HF_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }


def export(
    environment: dict[str, str], *arguments: str, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `before` runs in its process."""
    return subprocess.run(
        [sys.executable, "-m", "export", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * START_S,
        check=False,
        preexec_fn=before,
    )


def stopped_at(environment: dict[str, str], phase: str, number: int, *arguments: str) -> tuple[int, str]:
    """Run a command, send a signal when it prints a phase; return its exit status and standard error."""
    with subprocess.Popen(
        [sys.executable, "-m", "export", *arguments],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as popen:
        assert popen.stdout
        assert any(phase in line for line in popen.stdout), popen.communicate()
        popen.send_signal(number)
        _, errors = popen.communicate(timeout=2 * START_S)
        return popen.returncode, errors


def last_line(errors: str) -> str:
    """Return the last line of standard error, which must not hold a traceback."""
    assert "Traceback" not in errors
    return errors.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("phase", "number", "status"),
    [
        ("epoch 2 of", signal.SIGINT, INTERRUPTED),
        pytest.param("epoch 2 of", signal.SIGTERM, TERMINATED, marks=pytest.mark.slow),
    ],
)
def test_training_that_is_stopped_saves_a_checkpoint_and_resumes(
    phase: str, number: int, status: int, environment: dict[str, str], tmp_path: Path
) -> None:
    """The sentence names the checkpoint; the same command resumes after the steps that were taken."""
    command = [*TRAIN, str(tmp_path / "run"), "--set", *SMALL, "epochs=5000", "patience=5000"]
    returned, errors = stopped_at(environment, phase, number, *command)
    assert returned == status, errors
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert last_line(errors).startswith(f"train: {word}; {tmp_path / 'run'} keeps its checkpoint of ")
    assert "the same command resumes" in last_line(errors)
    assert not list((tmp_path / "run").glob("*.partial"))
    again = export(environment, *command, "--time-budget", "0s")
    assert again.returncode == 0, again.stderr
    assert f"resuming {tmp_path / 'run'}/checkpoint.pt" in again.stdout.replace("\n", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "kept"),
    [
        ("reading the data set", "has no checkpoint yet; the same command starts from the beginning"),
        ("tokenizing", "has no checkpoint yet; the same command starts from the beginning"),
        ("measuring the best weights", "keeps its checkpoint of "),
    ],
)
def test_training_that_is_interrupted_outside_of_its_steps_goes_on(
    phase: str, kept: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """The command that was interrupted finishes the run when it is started again."""
    command = [*TRAIN, str(tmp_path / "run"), "--set", *SMALL, "epochs=1"]
    returned, errors = stopped_at(environment, phase, signal.SIGINT, *command)
    assert returned == INTERRUPTED, errors
    assert last_line(errors).startswith("train: interrupted; ")
    assert kept in last_line(errors) or "keeps its checkpoint" in last_line(errors)
    assert export(environment, *command).returncode == 0
    assert (tmp_path / "run/result.json").is_file()


@pytest.fixture(scope="module")
def finished(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of one epoch."""
    run_dir = tmp_path_factory.mktemp("runs") / "small"
    run = export(environment, *TRAIN, str(run_dir), "--set", *SMALL, "epochs=1")
    assert run.returncode == 0, run.stderr
    return run_dir


@pytest.mark.parametrize(
    "phase",
    [
        "exporting to ONNX",
        pytest.param("comparing with PyTorch", marks=pytest.mark.slow),
        pytest.param("exporting the graph that explains", marks=pytest.mark.slow),
        pytest.param("writing float16", marks=pytest.mark.slow),
    ],
)
def test_conversion_that_is_interrupted_leaves_no_version(
    phase: str, finished: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """The store has nothing of it, and the sentence says so."""
    store = tmp_path / "store"
    command = ["convert", "small", "--run-dir", str(finished), "--model-store", str(store)]
    returned, errors = stopped_at(environment, phase, signal.SIGINT, *command)
    assert returned == INTERRUPTED, errors
    expected = f"convert: interrupted; no unfinished version is in {store}; the same command starts again"
    assert last_line(errors) == expected
    assert list(store.iterdir()) == []


def limit_files() -> None:
    """Limit the size of files, so that a longer write fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT_BYTES, FILE_LIMIT_BYTES))


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(environment: dict[str, str], tmp_path: Path) -> None:
    """The status is 1; the sentence says why, and what is kept."""
    command = [*TRAIN, str(tmp_path / "run"), "--set", *SMALL, "epochs=5000", "patience=5000"]
    assert export(environment, *command, "--time-budget", "0s").returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    run = export(environment, *command, before=limit_files)
    assert run.returncode == FAILED, run.stderr
    assert last_line(run.stderr).startswith(f"train: File too large; {tmp_path / 'run'} keeps its checkpoint of ")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_data_set_that_cannot_be_unpacked_is_a_full_disk(environment: dict[str, str], tmp_path: Path) -> None:
    """The library's threads end with an abort after such an error; the status is still 1."""
    fresh = environment | {"HF_HOME": str(tmp_path / "cache")}
    run = export(fresh, *TRAIN, str(tmp_path / "run"), "--set", *SMALL, before=limit_files)
    assert run.returncode == FAILED, run.stderr
    assert last_line(run.stderr).startswith(f"train: File too large; {tmp_path / 'run'} has no checkpoint yet; ")


def test_a_version_that_cannot_be_written_is_not_there(
    finished: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """The status is 1; the store has nothing of it."""
    store = tmp_path / "store"
    command = ["convert", "small", "--run-dir", str(finished), "--model-store", str(store)]
    run = export(environment, *command, before=limit_files)
    assert run.returncode == FAILED, run.stderr
    assert last_line(run.stderr).startswith("convert: ")
    assert last_line(run.stderr).endswith("the same command starts again, once there is space")
    assert list(store.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of a few pages."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={FILE_LIMIT_BYTES}", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_run_on_a_full_disk_says_so(environment: dict[str, str], small_disk: Path) -> None:
    """No file of the run is half written."""
    run = export(environment, *TRAIN, str(small_disk / "run"), "--set", *SMALL, "epochs=1")
    assert run.returncode == FAILED, run.stderr
    assert last_line(run.stderr).startswith("train: No space left on device; ")
    assert not list((small_disk / "run").glob(".*"))
