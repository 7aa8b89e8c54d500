"""The command lines of all programs: what they say without their packages, and what their help names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from export.__main__ import main
from export.recipes.files import built_in_recipes
from tests.conftest import ROOT, START_S

# Programs that a user starts, with arguments that are enough to start them.
PROGRAMS = {
    "service": [],
    "export": ["train", "sentiment"],
    **{
        ".".join(path.parent.relative_to(ROOT).parts): [] for path in sorted((ROOT / "load_tests").rglob("__main__.py"))
    },
    "load_tests.bench.echo_server": ["0"],
    "load_tests.bench.runtimes": [],
    "load_tests.bench.trained_runs": ["runs/one"],
}
COMMANDS = {  # of `python -m export`
    "train": ["sentiment"],
    "queue": [],
    "measure": ["sentiment"],
    "report": [],
    "convert": ["sentiment"],
    "explain-graph": ["model_store/sentiment/1"],
    "half-graphs": ["model_store/sentiment/1"],
    "measure-batches": ["model_store/sentiment/1"],
    "explain": [],
    "load": ["folder", "--task", "translation"],
    "untrained": [],
    "archive": [],
}
# What may stand for a value in a help text: its kind, or its unit.
KINDS = {
    *("FOLDER", "FILE", "NAME", "MODEL", "MODEL,...", "TEXT", "KEY=VALUE", "PID"),
    *("N", "SECONDS", "TIME", "BYTES", "ROWS", "TOKENS", "PIXELS"),
    *("PORT", "ADDRESS", "URL", "HOST:PORT"),
}


def run(
    *arguments: str, options: tuple[str, ...] = (), folder: Path = ROOT, columns: int = 200
) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository, or in a folder that has its packages on the path."""
    return subprocess.run(
        [sys.executable, *options, *arguments],
        cwd=folder,
        env=os.environ | {"COLUMNS": str(columns), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )


def without_packages(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python without its installed packages (`-S`)."""
    return run(*arguments, options=("-S",))


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_without_its_packages_says_what_to_install(program: str) -> None:
    """It is one sentence with the missing package, the interpreter and the command; help needs no package."""
    ended = without_packages("-m", program, *PROGRAMS[program])
    assert ended.returncode, ended.stdout
    (sentence,) = ended.stderr.splitlines()
    assert re.search(r"the package '\w+' is not installed for ", sentence)
    assert sys.executable in sentence
    assert re.search(r"`make [\w./-]+` or `pip install [^`]+` installs what is needed$", sentence)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_of_export_names_its_extra(command: str) -> None:
    """An archive needs less than training does; a run or a folder that is not there may be said first."""
    ended = without_packages("-m", "export", command, *COMMANDS[command])
    (sentence,) = ended.stderr.splitlines()
    extra = "torchserve" if command == "archive" else "train"
    if "has no finished run" in sentence:
        assert command in {"measure", "convert"}
        return
    assert (ended.returncode, f"`make .venv/{extra}.stamp`" in sentence) == (2, True), sentence
    targets = subprocess.run(
        ["make", "--dry-run", f".venv/{extra}.stamp"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert targets.returncode == 0, targets.stderr


def test_the_list_of_commands_is_complete() -> None:
    """Help, without any package, has each of them."""
    ended = without_packages("-m", "export", "--help")
    listed = re.search(r"\{([^}]+)\}", ended.stdout)
    assert listed
    assert set(listed[1].split(",")) == set(COMMANDS), ended.stderr


@pytest.mark.parametrize(
    "words",
    [[program] for program in PROGRAMS if program != "export"]
    + [["export.torchserve"]]
    + [["export", command] for command in COMMANDS],
    ids=" ".join,
)
def test_help_shows_the_kind_or_unit_of_each_value(words: list[str]) -> None:
    """An option that takes a value shows its choices, or one of a few words; each option has a description."""
    shown = run("-m", *words, "--help")
    assert shown.returncode == 0, shown.stderr
    described = shown.stdout[shown.stdout.index("options:") :].partition("recipes:")[0]
    options = re.findall(r"^  (?:-h, )?--([\w-]+)(?: (\{[^}]+\}|\[?[A-Z][^ \n]*))?.*\n(.*)", described, re.MULTILINE)
    assert len(options) >= 1
    for name, value, _ in options:
        assert not value or value.startswith("{") or value.strip("[]") in KINDS, (name, value)
    for line in re.findall(r"^  (?:-h, )?--[\w-]+[^\n]*$(?!\n {10})", described, re.MULTILINE):
        assert re.search(r"\S {2,}\S", line), f"no description: {line}"


def test_recipes_are_listed_by_help_and_by_an_unknown_name() -> None:
    """The closest name comes first."""
    recipes = built_in_recipes()
    shown = run("-m", "export", "train", "--help").stdout
    assert [name for name, each in recipes.items() if f"  {name} " not in shown or each.description not in shown] == []
    unknown = run("-m", "export", "train", "cifar10-vti")
    assert (unknown.returncode, "there is no recipe 'cifar10-vti'; there are cifar10-vit, " in unknown.stderr) == (
        2,
        True,
    )
    assert [name for name in recipes if name not in unknown.stderr] == []


def test_unknown_names_are_refused_with_those_that_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Examples are runs, versions, checkpoints and models; each message is one sentence, closest first."""
    monkeypatch.chdir(tmp_path)
    for name in ("sentiment-a", "other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "result.json").touch()
        (tmp_path / "saved" / name).mkdir(parents=True)
        (tmp_path / "saved" / name / "config.json").touch()
        (tmp_path / "model_store" / name / "1").mkdir(parents=True)
        (tmp_path / "model_store" / name / "1/manifest.json").touch()
    (tmp_path / "queue.toml").write_text('[[run]]\nname = "a"\nrecipe = "multi31k"\n')
    (tmp_path / "empty.toml").touch()
    for words, expected in (
        (["convert", "sentiment"], "runs/sentiment has no finished run: .*finished in runs: sentiment-a, other$"),
        (["measure", "sentiment"], "runs/sentiment has no finished run: .*finished in runs: sentiment-a, other$"),
        (
            ["explain-graph", "model_store/sentiment/1"],
            "model_store/sentiment/1 is not .*there are: model_store/sentiment-a/1, model_store/other/1$",
        ),
        (["archive", "sentiment"], "no model with a task: sentiment; model_store has sentiment-a, other$"),
        (
            ["load", "./saved/sentiment", "--task", "translation"],
            "sentiment is not a folder; .* there are: saved/sentiment-a, saved/other$",
        ),
        (["queue", "--file", "queue.toml"], "queue.toml: run 'a': there is no recipe 'multi31k'; there are multi30k, "),
        (["queue", "--file", "empty.toml"], r"empty.toml has no tables \[\[run\]\]$"),
        (["queue", "--file", "nowhere.toml"], "No such file or directory: nowhere.toml$"),
    ):
        # In this process, because each of its own would import torch again.
        monkeypatch.setattr(sys, "argv", ["export", *words])
        assert main() == 1, words
        (sentence,) = capsys.readouterr().err.splitlines()
        assert re.search(expected, sentence), sentence
