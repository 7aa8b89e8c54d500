"""Exported transformers are proved, with their masks, positions and indices of the last word."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from service.models.row_independence import prove_rows_independent
from tests.service.models.row_independence.graphs import computed

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
}
END = 99
# The place of the end of each text, the largest id, is looked up: in one line of all texts by the TorchScript exporter.
CLIP = SMALL | {"projection_dim": 16, "bos_token_id": 0, "eos_token_id": END}
CASES = {
    "BERT, TorchScript": (transformers.BertForSequenceClassification, transformers.BertConfig, SMALL, False),
    "CLIP, TorchScript": (transformers.CLIPTextModelWithProjection, transformers.CLIPTextConfig, CLIP, False),
    "CLIP, dynamo": (transformers.CLIPTextModelWithProjection, transformers.CLIPTextConfig, CLIP, True),
}


class FirstOutput(torch.nn.Module):
    """A model that returns only the first output for ids and mask."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor) -> torch.Tensor:
        """Return the model's first output."""
        result: torch.Tensor = self.model(input_ids_BT, attention_mask_BT)[0]
        return result


def exported(path: Path, model: torch.nn.Module, ids_BT: torch.Tensor, *, dynamo: bool) -> bytes:
    """Export a graph with dynamic batch and length."""
    names, arguments = ["input_ids", "attention_mask"], (ids_BT, torch.ones_like(ids_BT))
    if dynamo:
        auto = torch.export.Dim.AUTO
        sizes: dict[str, Any] = {"dynamic_shapes": ({0: auto, 1: auto}, {0: auto, 1: auto}), "external_data": False}
    else:
        sizes = {"dynamic_axes": {name: {0: "batch", 1: "length"} for name in names}, "opset_version": 17}
    torch.onnx.export(
        model, arguments, path, input_names=names, output_names=["y"], dynamo=dynamo, verbose=False, **sizes
    )
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore")  # the exporters' own warnings
@pytest.mark.parametrize("case", CASES)
def test_an_exported_transformer_is_proved(case: str, tmp_path: Path) -> None:
    """Its rows are also the same alone and in a batch, with padding too."""
    model_class, config_class, sizes, dynamo = CASES[case]
    torch.manual_seed(0)
    model = FirstOutput(model_class(config_class(**sizes))).eval()
    ids_BT = torch.randint(3, END, (4, 7))
    ends_B = torch.tensor([6, 2, 4, 5])
    ids_BT[torch.arange(4), ends_B] = END
    mask_BT = (torch.arange(7) <= ends_B[:, None]).long()
    graph = exported(tmp_path / "model.onnx", model, ids_BT[:2], dynamo=dynamo)
    finding = prove_rows_independent(graph)
    assert (finding.independent, finding.reason) == (True, "")
    assert (("input_ids", 1), ("attention_mask", 1)) in finding.equal_sizes
    feeds = {"input_ids": ids_BT.numpy(), "attention_mask": mask_BT.numpy()}
    together = computed(graph, feeds)["y"]
    for row in range(len(ids_BT)):
        alone = computed(graph, {name: array[row : row + 1] for name, array in feeds.items()})["y"]
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)
