"""Limits on the sizes of folders, modules and functions; tests stand beside the modules that they test."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import LONGEST_FILES, ROOT

MAX_LINES = {"service": 400, "export": 450, "load_tests": 450, "model_store": 450}  # of a module
MAX_FUNCTION_LINES = 60
MAX_MODULES = 12  # in one folder; its rooms, `__init__` and `__main__` are not counted
# Tests that no single module or room owns, and what they cover.
WHOLE = {
    "tests/clients/test_foreign_environments.py": "clients of others, in environments of their own",
    "tests/clients/test_generated_clients.py": "a client that others generate from /openapi.json",
    "tests/clients/test_huggingface_hub.py": "a client of others against the server",
    "tests/clients/test_runtimes.py": "Heed and TorchServe by the same clients",
    "tests/clients/test_triton_examples.py": "programs of others against the server",
    "tests/clients/test_tritonclient.py": "a client of others against the server",
    "tests/export/conversion/test_explanation_oracles.py": "explanation graphs of the store beside captum and PyTorch",
    "tests/export/conversion/test_hugging_face.py": "text checkpoints from the command line to an answer",
    "tests/export/conversion/test_images.py": "an image classifier from its run to its folder",
    "tests/service/engines/test_engine_calls.py": "endless engine calls through a server",
    "tests/service/explanation/methods/test_oracles.py": "all methods beside lime, shap and captum",
    "tests/service/models/row_independence/test_backend_graphs.py": "the proof for every ONNX operator",
    "tests/service/models/row_independence/test_exported_models.py": "the proof for exported transformers",
    "tests/service/scheduling/test_overload.py": "both batchers at three times the capacity",
    "tests/service/test_committed_models.py": "the server on the models of the repository",
    "tests/service/test_independence.py": "answers alone and in company, from the engine to the server",
    "tests/service/test_lifecycle.py": "the process from start to exit",
    "tests/service/test_privacy.py": "the process and the images: what leaves the machine",
    "tests/service/test_served_files.py": "a server whose files are overwritten",
    "tests/service/transport/test_explain_interfaces.py": "explanations over HTTP and gRPC",
    "tests/service/transport/test_interfaces.py": "texts and bare graphs over HTTP and gRPC",
    "tests/service/transport/test_image_interfaces.py": "images over HTTP and gRPC",
    "tests/service/transport/test_text_task_interfaces.py": "entities, pairs, labels, gaps from checkpoint to page",
    "tests/service/transport/test_translation_interfaces.py": "translations over HTTP and gRPC",
    "tests/test_architecture.py": "the repository",
    "tests/test_containers.py": "the images",
    "tests/test_layout.py": "the repository",
    "tests/test_programs.py": "the command lines of all programs",
    "tests/test_readme.py": "the commands of README.md",
    "tests/test_unused.py": "a check of the repository",
}


def modules() -> Iterator[Path]:
    """Yield every module of the programs; proto/ is generated."""
    for program in MAX_LINES:
        yield from sorted((ROOT / program).rglob("*.py"))


def test_folders_have_at_most_twelve_modules() -> None:
    """A room with more needs rooms of its own."""
    counts = Counter(str(path.parent.relative_to(ROOT)) for path in modules() if not path.stem.startswith("__"))
    assert {folder: count for folder, count in counts.items() if count > MAX_MODULES} == {}


def test_modules_are_short() -> None:
    """A module over the limit holds more than one subject."""
    lines = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in modules()}
    assert {str(path): count for path, count in lines.items() if count > MAX_LINES[path.parts[0]]} == {}


def test_functions_fit_on_a_screen() -> None:
    """Nested functions count for the enclosing one."""
    long = {}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}: {node.name}"] = lines
    assert long == {}


def has_subject(test: Path, root: Path) -> bool:
    """Return whether `tests/<room>/test_<name>.py` has a `<room>/<name>`, or <name> is the room itself."""
    room, name = root / test.parent.relative_to("tests"), test.stem.removeprefix("test_")
    return room.is_dir() and (name == room.name or any(each.stem == name for each in room.iterdir()))


def test_tests_mirror_the_rooms() -> None:
    """A test stands in the folder of the module that it tests, unless the list says that it covers more."""
    tests = [path.relative_to(ROOT) for path in sorted((ROOT / "tests").rglob("test_*.py"))]
    assert [str(path) for path in tests if not has_subject(path, ROOT) and str(path) not in WHOLE] == []
    assert {*WHOLE, *LONGEST_FILES} <= {str(path) for path in tests}


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ("tests/service/test_config.py", True),
        ("tests/service/transport/http/test_playground.py", True),
        ("tests/service/monitoring/test_prometheus.py", True),
        ("tests/load_tests/soak/test_soak.py", True),
        ("tests/service/test_batcher.py", False),
        ("tests/service/nowhere/test_config.py", False),
    ],
)
def test_the_subject_of_a_test_is_a_file_a_folder_or_the_room(test: str, expected: bool) -> None:
    """Files of data count too: Prometheus' configuration has a test."""
    assert has_subject(Path(test), ROOT) == expected
