"""The commands of README.md, as they stand there: each can be run, and each request is answered."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.command_line import parser
from tests.conftest import ROOT, Server, running_server

README = (ROOT / "README.md").read_text()
HTTP = "http://127.0.0.1:8080"  # of the server in README's commands; other ports are other programs
FOREGROUND = ("make serve", "make torchserve")  # commands that do not end by themselves


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands_of(block: str) -> list[list[str]]:
    """Split a block into commands, and these into words, without comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


COMMANDS = [words for block in blocks("sh") for words in commands_of(block)]
# Commands within sentences and tables.
INLINE = [shlex.split(text) for text in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))]
EXPORT = [words for words in COMMANDS if words[1:3] == ["-m", "export"]]


def names_made() -> list[str]:
    """Return the names of models that README's commands make, one for each command that makes one."""
    named = [words[words.index("--name") + 1] for words in EXPORT if "--name" in words]
    return named + [Path(words[-1]).parent.name for words in COMMANDS if words[0] == "mkdir"]


def test_no_step_overwrites_the_model_of_another() -> None:
    """Every command that makes a model gives it a name of its own, which no committed model has."""
    names = names_made()
    assert len(names) >= 3
    assert len(set(names)) == len(names)
    assert not [name for name in names if (ROOT / "model_store" / name / "manifest.json").exists()]


def test_nothing_follows_a_command_that_stays_in_the_foreground() -> None:
    """A block can be pasted as a whole."""
    for block in blocks("sh"):
        commands = [" ".join(words) for words in commands_of(block)]
        assert not set(commands[:-1]) & set(FOREGROUND), block


@pytest.mark.parametrize("words", [words for words in [*COMMANDS, *INLINE] if words[0] == "make"], ids=" ".join)
def test_make_has_each_target(words: list[str]) -> None:
    """It says what it would run."""
    run = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("words", EXPORT, ids=lambda words: " ".join(words[3:5]))
def test_export_has_each_option(words: list[str]) -> None:
    """The parser of the program accepts the command."""
    parser().parse_args(words[3:])


def test_programs_that_sentences_name_exist() -> None:
    """Each `python -m` names a module with a main, and a command of export is one of its own."""
    modules = [(words[words.index("-m") + 1], words[words.index("-m") + 2 :]) for words in INLINE if "-m" in words]
    assert {module for module, _ in modules} >= {"service", "export", "load_tests"}
    for module, options in modules:
        path = ROOT / module.replace(".", "/")
        ours = (path / "__main__.py").is_file() or path.with_suffix(".py").is_file()
        assert ours or module in sys.stdlib_module_names, module
        if module == "export" and options:
            with pytest.raises(SystemExit) as ended:
                parser().parse_args([options[0], "--help"])
            assert ended.value.code == 0, options


def test_named_files_exist() -> None:
    """These are links, pictures that are sent, files that are copied, and the tree of folders."""
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    sent = [word[1:] for words in COMMANDS for word in words if word.startswith("@")]
    copied = [words[1] for words in COMMANDS if words[0] == "cp"]
    assert links
    assert sent
    assert copied
    assert [name for name in [*links, *sent, *copied] if not (ROOT / name).exists()] == []
    (tree,) = (block for block in blocks("text") if block.startswith("service/"))
    folder, missing = Path(), []
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = Path(name)
        path = folder / name if line.startswith(" ") else folder
        if not (ROOT / path).exists():
            missing.append(str(path))
    assert missing == []


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a server on the committed models and those that README's commands make.

    A trained or loaded model, which takes minutes to make, is a copy of a committed one.
    """
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "model_store", folder / "model_store", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for words in EXPORT:
        if "--name" in words:
            name = words[words.index("--name") + 1]
            shutil.copytree(ROOT / "model_store/sentiment", folder / "model_store" / name)
    for words in COMMANDS:
        if words[0] in {"mkdir", "cp"}:
            subprocess.run(words, cwd=folder, check=True)
    with running_server(folder / "model_store") as server:
        yield server


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_request_is_answered(followed: Server) -> None:
    """Each curl of the server gets 200; the first answer is the one that README shows."""
    requests = [words for words in COMMANDS if words[0] == "curl" and any(word.startswith(HTTP) for word in words)]
    assert len(requests) >= 7
    bodies = []
    for words in requests:
        here = [word.replace(HTTP, followed.http) for word in words]
        run = subprocess.run(
            [*here, "--silent", "--show-error", "--write-out", "\n%{http_code}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        body, _, status = run.stdout.rpartition("\n")
        assert status == "200", (words, run.stdout)
        bodies.append(body)
    (shown,) = blocks("json")
    ((answer,), (expected,)) = json.loads(bodies[0]), json.loads(shown)
    assert [each["label"] for each in answer] == [each["label"] for each in expected]
    # Processors round sums differently.
    assert [each["score"] for each in answer] == pytest.approx([each["score"] for each in expected], abs=5e-4)


def test_the_greeting_is_the_one_that_readme_shows() -> None:
    """It has the default ports, and the request that README sends first."""
    (greeting,) = (block for block in blocks("text") if block.startswith("HTTP"))
    command = " ".join(greeting.splitlines()[-1].split())
    assert shlex.split(command) in COMMANDS
