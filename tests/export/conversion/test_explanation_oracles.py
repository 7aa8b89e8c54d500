"""`explain.onnx` of the committed models equals captum's gradients and PyTorch's own attention.

Both are exactly determined, so they have to be equal but for rounding. The networks are read back from the folders.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.data.sets.images import load_image_set
from export.data.sets.texts import load_text_set
from export.data.sets.translations import load_translation_set
from export.networks.translation import BOS_ID, TranslationTransformer
from export.onnx_graphs.import_weights import stored_network
from export.studies.explained_answers import Answer, ImageModel, TextModel, TranslationModel
from tests.conftest import ROOT

# captum is imported late: it takes a second, also where these tests are left out.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("HEED_DATASETS"), reason="HEED_DATASETS is not set: SST-2, CIFAR-10, Multi30k"
    ),
]

NUM_INPUTS = 50
NUM_STEPS = 16  # on both sides
# Of the largest attribution: sums of thousands of products in another order.
TOLERANCE = 1e-4


@functools.cache
def images() -> list[NDArray[np.uint8]]:
    """Images of CIFAR-10's test split, [H, W, C]; reading the data set takes seconds."""
    return list(load_image_set("cifar10").test.pixels_NCHW[:NUM_INPUTS].transpose(0, 2, 3, 1))


def answers_of(name: str, count: int = NUM_INPUTS) -> Iterator[Answer]:
    """Answer examples of a committed model's data set."""
    folder = ROOT / "model_store" / name / "1"
    if name == "cifar10-vit":
        image_model = ImageModel(folder)
        for levels_HWC in images()[:count]:
            yield image_model.answer(levels_HWC)
    elif name == "translation-en-de":
        translator = TranslationModel(folder)
        for text in load_translation_set("multi30k").test["Multi30k"].source[:count]:
            yield translator.answer(text)
    else:
        text_model = TextModel(folder)
        for text in load_text_set("sst2").validation.texts[:count]:
            yield text_model.answer(text)


def network_of(name: str) -> Any:
    """Read the PyTorch network of a folder."""
    return stored_network(ROOT / "model_store" / name / "1").module.eval()


def tensors_of(answer: Answer) -> dict[str, Tensor]:
    """Return the answer's row as a batch of one."""
    return {name: torch.from_numpy(np.asarray(array))[None] for name, array in answer.row.feeds.items()}


def captums(network: Any) -> Callable[[Answer], Tensor]:
    """Compute captum's integrated gradients of an answer's tokens, [T]; cached for each network.

    Captum takes the baseline as an input of the network, so the words get one more, whose vector is zeros.
    """
    from captum.attr import LayerIntegratedGradients

    if hasattr(network, "tokens"):
        pixels = LayerIntegratedGradients(network, network.tokens)

        def of_image(answer: Answer) -> Tensor:
            given = tensors_of(answer)
            return pixels.attribute(
                given["pixel_values"], torch.zeros_like(given["pixel_values"]), int(given["target"]), n_steps=NUM_STEPS
            ).sum(dim=1).flatten()  # fmt: skip

        return of_image
    vectors_VD = network.embedding.weight.data
    network.embedding = nn.Embedding.from_pretrained(torch.cat((vectors_VD, torch.zeros(1, vectors_VD.size(1)))))
    words = LayerIntegratedGradients(network, network.embedding)

    def of_text(answer: Answer) -> Tensor:
        given = tensors_of(answer)
        ids = given["input_ids"]
        return words.attribute(
            ids,
            torch.full_like(ids, len(vectors_VD)),
            int(given["target"]),
            additional_forward_args=(given["attention_mask"],),
            n_steps=NUM_STEPS,
        )[0].sum(dim=-1)  # fmt: skip

    return of_text


@pytest.mark.parametrize("name", ["sentiment", "sentiment-small", "cifar10-vit"])
def test_integrated_gradients_equal_captums(name: str) -> None:
    """Compares token by token, with the same Gauss-Legendre steps on both sides."""
    theirs = captums(network_of(name))
    for answer in answers_of(name):
        expected_T = theirs(answer).detach().numpy()
        np.testing.assert_allclose(
            answer.gradients_of_tokens(NUM_STEPS),
            expected_T,
            atol=TOLERANCE * max(1.0, float(np.abs(expected_T).max())),
        )


def test_integrated_gradients_of_translations_equal_captums() -> None:
    """Explains the summed log probability of the translation by the source's vectors."""
    from captum.attr import IntegratedGradients

    network = network_of("translation-en-de")
    assert isinstance(network, TranslationTransformer)
    for answer in answers_of("translation-en-de", 20):
        given = tensors_of(answer)
        written = given["target_ids"]
        before = torch.cat((torch.tensor([[BOS_ID]]), written[:, :-1]), dim=1)

        def log_probability(vectors_BSD: Tensor, given: Any = given, before: Tensor = before) -> Tensor:
            """Compute the network with these vectors in place of the source's."""
            turn = iter([vectors_BSD])
            hook = network.embedding.register_forward_hook(lambda module, inputs, output: next(turn, output))
            B = len(vectors_BSD)
            rows = [each.expand(B, -1) for each in (given["source_ids"], given["source_mask"], before)]
            logits_BTV = network(*rows, torch.ones_like(rows[2])).view(B, before.size(1), -1)
            hook.remove()
            log_probability_BTV = torch.log_softmax(logits_BTV, dim=-1)
            return log_probability_BTV.gather(-1, given["target_ids"].expand(B, -1)[..., None]).sum(dim=(1, 2))

        vectors_1SD = network.embedding(given["source_ids"]).detach()
        expected_S = (
            IntegratedGradients(log_probability)
            .attribute(vectors_1SD, torch.zeros_like(vectors_1SD), n_steps=NUM_STEPS)[0]
            .sum(dim=-1)
            .detach()
            .numpy()
        )
        # Ten times as much: rounding moves steps across the kinks of ReLU.
        np.testing.assert_allclose(
            answer.gradients_of_tokens(NUM_STEPS),
            expected_S,
            atol=10 * TOLERANCE * max(1.0, float(np.abs(expected_S).max())),
        )


@pytest.mark.parametrize("name", ["sentiment", "sentiment-small", "cifar10-vit", "translation-en-de"])
def test_attention_equals_pytorchs(name: str) -> None:
    """`nn.MultiheadAttention` with a layer's weights gets that layer's input; compares every head and layer."""
    network = network_of(name)
    layers = list(network.encoder if name == "translation-en-de" else network.layers)
    judges, seen = [judge_of(layer.attention) for layer in layers], dict[int, Tensor]()
    for number, layer in enumerate(layers):
        layer.attention.register_forward_pre_hook(
            lambda module, inputs, number=number: seen.__setitem__(number, inputs[0])
        )
    for answer in answers_of(name):
        given, outputs = tensors_of(answer), answer.outputs()
        with torch.no_grad():
            if name == "translation-en-de":
                network(given["source_ids"], given["source_mask"], given["target_ids"], given["target_mask"])
                found_LHTT = outputs["encoder_attention"]
            else:
                network(*(given[each] for each in ("pixel_values", "input_ids", "attention_mask") if each in given))
                found_LHTT = outputs["attention"]
            for number, judge in enumerate(judges):
                x_1TD = seen[number]
                _, expected_1HTT = judge(x_1TD, x_1TD, x_1TD, need_weights=True, average_attn_weights=False)
                np.testing.assert_allclose(found_LHTT[number], expected_1HTT[0].numpy(), atol=2e-5)


def judge_of(attention: Any) -> nn.MultiheadAttention:
    """Build PyTorch's module with our weights."""
    judge = nn.MultiheadAttention(attention.out.in_features, attention.num_heads, batch_first=True)
    with torch.no_grad():
        for theirs, mine in (
            (judge.in_proj_weight, attention.qkv.weight),
            (judge.in_proj_bias, attention.qkv.bias),
            (judge.out_proj.weight, attention.out.weight),
            (judge.out_proj.bias, attention.out.bias),
        ):
            theirs.copy_(mine)
    return judge.eval()
