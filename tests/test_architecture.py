"""The files of the repository match its pages, its Makefile and its workflow."""

import json
import re
from pathlib import Path

import yaml

from tests.conftest import ROOT

TOP_LEVEL = {
    "service",
    "model_store",
    "export",
    "proto",
    "tests",
    "load_tests",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "pyproject.toml",
    "heed.py",
    "Makefile",
    "docs",
}
TOP_LEVEL |= {"constraints.txt", "docker-compose.yml", "docker-compose.gpu.yml"}
MADE_HERE = {"build", "runs"}
REPOSITORY_PATH = re.compile(r"`((?:service|export|load_tests|tests|model_store|proto|docs)/[\w./-]*\.\w+)`")


def test_the_top_level_has_no_other_files() -> None:
    """Dot files and ignored files are left out."""
    found = {
        path.name for path in ROOT.iterdir() if not path.name.startswith(".") and not path.name.endswith(".egg-info")
    }
    assert found - MADE_HERE <= TOP_LEVEL


def test_the_readmes_tree_matches_the_disk() -> None:
    """Every path in it exists, and it has every module of `service/`."""
    block = (ROOT / "README.md").read_text().split("## What is where")[1].split("```")[1]
    paths, folder = set(), ""
    for line in block.splitlines()[1:]:
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name
        paths.add(name if not line.startswith(" ") else folder + name)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    modules = {f"service/{path.name}" for path in (ROOT / "service").glob("*.py")} - {"service/__init__.py"}
    assert modules <= paths


def pages() -> list[Path]:
    """Return the pages for people: those at the top level and all of docs/."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_links_between_pages_exist() -> None:
    """Relative links lead to existing files."""
    links = [(page, link) for page in pages() for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())]
    assert links
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []


def test_links_to_headings_exist() -> None:
    """The part after `#` of a relative link is a heading of the page, as GitHub writes it."""
    links = [
        (page, page.parent / link if link else page, heading)
        for page in pages()
        for link, heading in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text())
    ]
    assert links
    assert [(page.name, heading) for page, target, heading in links if heading not in headings_of(target)] == []


def headings_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_paths_that_the_pages_name_exist() -> None:
    """Paths in backticks exist, such as `service/errors.py`; generated records may name old files."""
    named = []
    for page in set(pages()) - {ROOT / "CHANGELOG.md"}:
        text = re.sub(r"<!-- (\w+): begin -->.*?<!-- \1: end -->", "", page.read_text(), flags=re.DOTALL)
        named += [(page.name, path) for path in REPOSITORY_PATH.findall(text)]
    assert named
    assert [(page, path) for page, path in named if not (ROOT / path).exists()] == []


def test_make_targets_have_one_line() -> None:
    """A target has one recipe line, and one more for the stamp of an environment."""
    targets: dict[str, int] = {}
    name = ""
    for line in (ROOT / "Makefile").read_text().splitlines():
        if line.startswith("\t"):
            targets[name] += 1
        elif match := re.match(r"([\w./-]+):", line):
            name = match[1]
            targets[name] = 0
    assert targets.keys() >= {"serve", "test", "check", "load", "bench"}
    assert {name for name, lines in targets.items() if lines > 1} == {
        f".venv/{extra}.stamp" for extra in ("serve", "train", "dev", "gpu", "torchserve")
    }


def test_the_pre_commit_hook_calls_a_make_target() -> None:
    """The hook has no definition of its own."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (hook,) = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert (hook["entry"], hook["language"], hook["pass_filenames"]) == ("make lint", "system", False)
    assert re.search(r"^lint:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_versions_are_pinned_without_addresses() -> None:
    """constraints.txt has only exact versions (with an epoch before "!", PEP 440)."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert "torch==2.13.0" in lines
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==([0-9]+!)?[0-9][A-Za-z0-9.]*", line)] == []


def test_committed_models_are_complete() -> None:
    """Each has card, manifest, golden examples, files of its task, and TorchScript if it is a float32 classifier."""
    versions = [path for path in (ROOT / "model_store").glob("*/[0-9]*") if path.is_dir()]
    served = {version.parent.name for version in versions}
    assert {"sentiment", "sentiment-small", "translation-en-de", "cifar10-vit"} <= served
    needed = {"README.md", "manifest.json", "golden.json", "model.onnx", "config.json"}
    needed_by = {
        "text-classification": {"tokenizer.json"},
        "image-classification": {"preprocessor_config.json"},
        "translation": {"tokenizer.json", "encoder.onnx", "generation_config.json"},
    }
    for version in versions:
        manifest = json.loads((version / "manifest.json").read_text())
        also = needed_by[manifest["task"]]
        if manifest["precision"] == "float32" and manifest["task"] != "translation":
            also = also | {"model.torchscript.pt"}
        assert needed | also <= {path.name for path in version.iterdir()}


def test_the_workflow_runs_make_targets() -> None:
    """It runs the checks by their Make targets, and builds an image of every Dockerfile."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    targets = {match[1] for step in steps if (match := re.fullmatch(r"make ([\w-]+)", step.get("run", "")))}
    assert targets == {"check", "test", "test-slow", "load-ci", "compose-test"}
    assert targets <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    built = {image["dockerfile"] for image in workflow["jobs"]["images"]["strategy"]["matrix"]["include"]}
    assert built == {str(path.relative_to(ROOT)) for path in ROOT.glob("*/**/Dockerfile") if ".venv" not in path.parts}
