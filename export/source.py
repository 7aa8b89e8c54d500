"""A trained text classifier, wherever it comes from: what conversion needs to know of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from export.run_folder import read_result
from export.train_text_classifier import load_run_model
from export.transformer import PackedTextClassifier
from service.tasks.text_classification import TextClassification


@dataclass(frozen=True, kw_only=True)
class TextClassifierSource:
    """A PyTorch text classifier with its tokenizer and labels.

    `module` takes int64 tensors [B, T] in the order of `input_names` and returns logits [B, C]. `for_export` returns
    the same network in a form that only makes sense inside an export; `skips_padding` says whether that form computes
    real tokens only.
    """

    module: nn.Module
    for_export: Callable[[], nn.Module]
    skips_padding: bool
    input_names: tuple[str, ...]
    tokenizer_json: str
    labels: list[str]
    max_tokens: int
    pad_id: int
    num_heads: int
    hidden_size: int
    model_type: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def task(self) -> TextClassification:
        """Pre- and postprocessing, as the service will do it."""
        return TextClassification(
            self.tokenizer_json,
            labels=self.labels,
            max_tokens=self.max_tokens,
            pad_id=self.pad_id,
            graph_inputs=self.input_names,
        )

    @torch.inference_mode()
    def logits(self, module: Callable[..., torch.Tensor], texts: Sequence[str]) -> NDArray[np.float32]:
        """What `module` (this one, or its TorchScript) answers: one text at a time, without padding; [B, C]."""
        task = self.task()
        rows = []
        for text in texts:
            feeds = task.collate([task.preprocess(text, truncate=True, field="text")])
            rows.append(module(*(torch.from_numpy(feeds[name]) for name in self.input_names)).float().numpy())
        return np.concatenate(rows)


def source_of_run(run_dir: Path) -> TextClassifierSource:
    """The best weights of a finished training run.

    Raises:
        FileNotFoundError: the run is not finished, or there is none.
    """
    result = read_result(run_dir)
    network = result["network"]
    if network != "transformer":
        raise ValueError(f"{run_dir} holds a {network}: only the Transformer has a form for serving")
    model = load_run_model(run_dir)
    kept = (
        "data",
        "command",
        "commit",
        "hardware",
        "torch",
        "training_s",
        "num_parameters",
        "best_epoch",
    )
    return TextClassifierSource(
        module=model,
        for_export=lambda: PackedTextClassifier(model),
        skips_padding=True,
        input_names=("input_ids", "attention_mask"),
        tokenizer_json=(run_dir / "tokenizer.json").read_text(),
        labels=result["labels"],
        max_tokens=model.config.max_tokens,
        pad_id=0,
        num_heads=model.config.num_heads,
        hidden_size=model.config.d_model,
        model_type="heed-encoder",
        provenance={name: result[name] for name in kept}
        | {name: result["config"][name] for name in ("seed", "start_from", "teacher") if result["config"].get(name)},
    )
