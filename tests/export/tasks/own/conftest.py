"""Folders of one's own with small data sets, and the command line in this process."""

import json
import shutil
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from export.__main__ import main
from tests.conftest import ROOT

OWN = ROOT / "tests" / "data" / "own"
# Settings that train within a second.
TINY = ["--set", "epochs=1", "model.d_model=32", "model.num_layers=1", "model.d_ff=64", "model.vocab_size=400"]


def export(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run a command of `export` in this process; return its exit status, output, and errors."""
    sys.argv = ["export", *words]
    try:
        status = main()
    except SystemExit as ended:  # of argparse
        status = int(str(ended.code))
    said = capsys.readouterr()
    return status, " ".join(said.out.split()), said.err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with the small data sets, that is the current one."""
    for path in OWN.iterdir():
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    return tmp_path


def train(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run `train`; arguments and result are those of `export`."""
    return export("train", *words, capsys=capsys)


def draw_shapes(folder: Path, count: int = 24, seed: int = 0) -> Path:
    """Draw a folder of images for each of two shapes, of different sizes and colours."""
    rng = np.random.default_rng(seed)
    for label in ("disc", "frame"):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            side = int(rng.integers(20, 30))
            image = Image.new("RGB", (side, side + 4), tuple(rng.integers(0, 80, 3).tolist()))
            box = [4, 4, side - 5, side - 5]
            colour = tuple(rng.integers(150, 256, 3).tolist())
            draw = ImageDraw.Draw(image)
            if label == "disc":
                draw.ellipse(box, fill=colour)
            else:
                draw.rectangle(box, outline=colour, width=2)
            image.save(folder / label / f"{number}.png")
    return folder


def answered(url: str, model: str, inputs: str) -> Any:
    """Ask a model over the task API."""
    body = json.dumps({"inputs": inputs}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/models/{model}", body)) as answer:
        return json.load(answer)
