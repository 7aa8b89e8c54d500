"""The console script `heed`, run as a process."""

import fcntl
import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
from importlib.metadata import version
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from service.sources.conversion_cache import Checkpoint, fingerprint
from tests.conftest import ROOT, START_S, made_once, running_server, write_onnx

MODULE, FUNCTION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["heed"].split(":")
# As pip writes the script.
SCRIPT = f"import sys; from {MODULE} import {FUNCTION}; sys.exit({FUNCTION}())"
CONVERSION_S = 600.0  # only a failing test waits this long
SERVE = ["serve", "--http-port", "0", "--grpc-port", "0", "--unready-before-drain-s", "0"]


def heed(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script to its end, after some code."""
    command = [sys.executable, "-c", before + SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=CONVERSION_S, check=False)


@pytest.mark.parametrize("module", [None, "heed", "service", "export"])
def test_the_version_is_that_of_the_package(module: str | None) -> None:
    """The script and all programs print the same line."""
    command = [sys.executable, "-c", SCRIPT] if module is None else [sys.executable, "-m", module]
    run = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (run.returncode, run.stdout) == (0, f"heed {version('heed')}\n"), run.stderr


def test_the_usage_has_a_line_for_each_command() -> None:
    """It is also printed without a command, and imports none of the programs."""
    report = "import atexit, sys; atexit.register(lambda: print({'service', 'export'} & set(sys.modules)));"
    shown = heed("--help", before=report).stdout
    assert shown.endswith("set()\n")
    assert heed().stdout == shown.removesuffix("set()\n")
    commands = [line.split()[0] for line in shown.splitlines() if line.startswith("  ")]
    listed = re.search(r"\{([^}]+)\}", heed("export").stdout)
    assert listed
    assert sorted(commands) == sorted(["serve", "predict", *listed[1].split(","), "export"])


def test_an_unknown_command_is_refused_with_the_closest_ones() -> None:
    """The most likely one is named first."""
    unknown = heed("trian")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("heed: there is no command 'trian'; there are train, ")


def test_serve_starts_the_server_until_sigterm(tmp_path: Path) -> None:
    """It listens, and ends with status 0."""
    command = [sys.executable, "-c", SCRIPT, *SERVE, "--model-store", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as popen:
        assert popen.stderr
        events = (json.loads(line)["event"] for line in popen.stderr)
        assert "listening" in events
        popen.terminate()
        assert popen.wait(timeout=START_S) == 0


def test_serve_imports_neither_torch_nor_export(tmp_path: Path) -> None:
    """All that the server imports is there when it finds no model store."""
    report = (
        "import atexit, sys; names = ('torch', 'export', 'onnx', 'service.server');"
        "atexit.register(lambda: print([name for name in names if name in sys.modules]));"
    )
    run = heed(*SERVE, "--model-store", str(tmp_path / "nowhere"), before=report)
    assert (run.returncode, run.stdout.strip()) == (1, "['service.server']"), run.stderr


def test_commands_of_export_are_on_the_same_level(tmp_path: Path) -> None:
    """Options and the exit status pass through."""
    assert "usage: python -m export train" in heed("train", "--help").stdout
    assert "train" in heed("export").stdout
    missing = heed("convert", "nothing", "--run-dir", str(tmp_path))
    assert (missing.returncode, missing.stderr.startswith("convert: ")) == (1, True), missing.stderr


@pytest.mark.parametrize("missing", ["torch", "rich", "export"])
def test_an_installation_that_only_serves_names_the_extra(missing: str) -> None:
    """Where a package of training is missing, or `export/` as in the image of the server."""
    run = heed("train", "sentiment", before=f"import sys; sys.modules[{missing!r}] = None;")
    assert (run.returncode, "pip install 'heed[train]'" in run.stderr) == (2, True), run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    "words", [["serve"], ["serve", "model_store/sentiment"], ["predict", "a", "b.csv"]], ids=" ".join
)
def test_an_installation_without_packages_says_what_to_install(words: list[str]) -> None:
    """It is one sentence with the missing package."""
    command = [sys.executable, "-S", "-m", "heed", *words]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    (sentence,) = run.stderr.splitlines()
    assert (run.returncode, "is not installed for" in sentence, "`make serve`" in sentence) == (2, True, True), sentence


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a random BERT classifier with its tokenizer, in Hugging Face form."""
    from tests.export.conversion.test_hugging_face import save_model

    def save(folder: Path) -> None:
        save_model("bert", folder)

    return made_once(tmp_path_factory, "mine", save)


@pytest.fixture(scope="module")
def cache(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert the checkpoint by the first start of a server."""
    cache = tmp_path_factory.mktemp("cache")
    command = [sys.executable, "-m", "heed", *SERVE, str(checkpoint), "--cache", str(cache)]
    lines = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT) as popen:
        assert popen.stderr
        for line in popen.stderr:  # to its end
            lines.append(line)
            if '"loaded"' in line:
                popen.terminate()
    assert popen.returncode == 0, lines
    assert sum(line.startswith("converting ") for line in lines) == 1
    assert "comparing with PyTorch on 500 texts\n" in lines
    return cache


def test_the_second_start_on_a_checkpoint_converts_nothing(checkpoint: Path, cache: Path) -> None:
    """It serves the model under the folder's name, without torch."""
    with running_server(None, str(checkpoint), "--cache", str(cache), program=["-m", "heed", "serve"]) as server:
        assert not [entry for entry in server.log if entry["event"].startswith("converting ")]
        assert "libtorch" not in Path(f"/proc/{server.popen.pid}/maps").read_text()
        body = json.dumps({"inputs": "A wonderful film."}).encode()
        with urllib.request.urlopen(f"{server.http}/models/mine", body, timeout=10) as response:
            ((best, *_),) = json.load(response)
    assert best["label"] in {"bad", "mixed", "good"}


def test_an_installation_that_only_serves_takes_what_is_converted(
    checkpoint: Path, cache: Path, tmp_path: Path
) -> None:
    """Without torch a file is answered from the cache; what the cache lacks is refused with the extra that converts."""
    (tmp_path / "one.txt").write_text("A wonderful film.\n")
    arguments = ["predict", str(checkpoint), str(tmp_path / "one.txt"), "--cache"]
    answered = heed(*arguments, str(cache), before="import sys; sys.modules['torch'] = None;")
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.splitlines()[1].startswith("A wonderful film.,")
    refused = heed(*arguments, str(tmp_path / "cache"), before="import sys; sys.modules['torch'] = None;")
    assert (refused.returncode, "pip install 'heed[train]'" in refused.stderr) == (2, True), refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_changed_checkpoint_is_another_one(checkpoint: Path, cache: Path, tmp_path: Path) -> None:
    """A single byte in one of its files is enough."""
    changed = Path(shutil.copytree(checkpoint, tmp_path / "mine"))
    with (changed / "config.json").open("a") as file:
        file.write("\n")
    (tmp_path / "one.txt").write_text("A wonderful film.\n")
    arguments = ["predict", str(changed), str(tmp_path / "one.txt"), "--cache", str(cache)]
    refused = heed(*arguments, before="import sys; sys.modules['torch'] = None;")
    assert (refused.returncode, "the cache does not have" in refused.stderr) == (2, True), refused.stderr


def test_a_second_process_waits_for_the_conversion_of_the_first(checkpoint: Path, cache: Path, tmp_path: Path) -> None:
    """It waits for the lock, and then takes what is converted."""
    (tmp_path / "one.txt").write_text("A wonderful film.\n")
    key = fingerprint(Checkpoint(str(checkpoint), checkpoint, "mine", None, "float32", None))
    command = [sys.executable, "-m", "heed", "predict", str(checkpoint), str(tmp_path / "one.txt")]
    with (cache / "models" / str(key) / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen(
            [*command, "--cache", str(cache)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT
        ) as popen:
            assert popen.stderr
            assert "another process converts" in popen.stderr.readline()
            fcntl.flock(lock, fcntl.LOCK_UN)
            said = popen.stderr.read()
            assert popen.wait(START_S) == 0
    assert "is converted already" in said
    assert "converting " not in said


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_conversion_leaves_nothing(
    number: signal.Signals, status: int, checkpoint: Path, tmp_path: Path
) -> None:
    """The signal ends both processes, and the cache has no half entry."""
    command = [sys.executable, "-m", "heed", *SERVE, str(checkpoint), "--cache", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as popen:
        assert popen.stderr
        assert popen.stderr.readline().startswith("converting ")
        popen.send_signal(number)
        # The end of the error stream is the end of both, since the conversion writes to it too.
        said = popen.stderr.read()
        assert popen.wait(START_S) == status
    assert "while " in said.splitlines()[-1]
    assert [
        path for path in (tmp_path / "models").rglob("*") if path.name != ".lock" and path.parent.parent != tmp_path
    ] == []


@pytest.mark.slow  # converts
def test_a_checkpoint_that_changes_during_its_conversion_is_not_kept(checkpoint: Path, tmp_path: Path) -> None:
    """Nobody could say which of its states was converted."""
    changing = Path(shutil.copytree(checkpoint, tmp_path / "mine"))
    command = [sys.executable, "-m", "heed", *SERVE, str(changing), "--cache", str(tmp_path / "cache")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as popen:
        assert popen.stderr
        for line in popen.stderr:
            if line.startswith("exporting"):
                (changing / "README.md").write_text("changed")
    assert (popen.returncode, line) == (1, f"heed serve: {changing} changed while it was converted; start again\n")
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".lock"]


@pytest.mark.slow  # imports transformers in a process of its own
def test_a_failed_conversion_ends_with_its_sentence(checkpoint: Path, tmp_path: Path) -> None:
    """The exit status is the conversion's, and the cache has no half entry."""
    broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"no weights")
    run = heed(*SERVE, str(broken), "--cache", str(tmp_path / "cache"))
    assert run.returncode == 1
    assert "load: model.safetensors is damaged or incomplete" in run.stderr
    assert run.stderr.splitlines()[-1] == f"heed serve: {broken} was not converted, see above"
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".lock"]


@pytest.mark.slow  # converts in a process of its own
def test_a_downloaded_model_of_the_hub_is_converted_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commit is the key; nothing is downloaded."""
    model = tmp_path / "hub/models--me--net"
    shutil.copytree(checkpoint, model / "snapshots/0a1b")
    (model / "refs").mkdir()
    (model / "refs/main").write_text("0a1b")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "one.txt").write_text("A wonderful film.\n")
    arguments = ["predict", "me/net", str(tmp_path / "one.txt"), "--cache", str(tmp_path / "cache")]
    first, second = heed(*arguments), heed(*arguments)
    assert first.stdout == second.stdout
    assert ("converting me/net" in first.stderr, "converting me/net" in second.stderr) == (True, False)
    assert second.stderr.startswith("me/net is converted already: ")


def test_serve_takes_graphs_and_model_folders(tmp_path: Path) -> None:
    """One server has a bare graph from a file beside a committed model; a wrong name is refused before the start."""
    floats = (TensorProto.FLOAT, ["rows", 3])
    write_onnx(tmp_path / "graphs", [helper.make_node("Add", ["x", "x"], ["y"])], {"x": floats}, {"y": floats})
    graph = (tmp_path / "graphs/model.onnx").rename(tmp_path / "double.onnx")
    sources = [str(graph), "model_store/sentiment-small"]
    cached = ["--cache", str(tmp_path / "cache")]
    with (
        running_server(None, *sources, *cached, program=["-m", "heed", "serve"]) as server,
        urllib.request.urlopen(f"{server.http}/v2/models", timeout=10) as response,
    ):
        models = {model["name"]: model["ready"] for model in json.load(response)["models"]}
    assert models == {"double": True, "sentiment-small": True}
    refused = heed(*SERVE, "model_store/sentimet", *cached)
    assert (refused.returncode, refused.stderr.startswith("heed serve: model_store/sentimet is ")) == (2, True)
    both = heed(*SERVE, *sources, "--model-store", "model_store", *cached)
    assert (both.returncode, "name the store as one of the models" in both.stderr) == (2, True)
