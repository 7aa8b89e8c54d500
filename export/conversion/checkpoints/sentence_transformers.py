"""Reads how a checkpoint of sentence-transformers makes a vector of a text: `modules.json` and the folders it names.

Layers are looked up by the last part of their type's name, which versions of sentence-transformers agree on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file
from torch import nn

from export.conversion.checkpoints.reading import LoadRefused, path_of, read_object, reading
from export.networks.sentence_embedding import POOLINGS

MODULES, TRANSFORMER_CONFIG = "modules.json", "sentence_bert_config.json"
OWN_CONFIG = "config_sentence_transformers.json"
DEFAULT_POOLING = "mean_tokens"  # of sentence-transformers, for a checkpoint without layers
# By the last part of `activation_function`, the name of a class of PyTorch.
ACTIVATIONS = {"Tanh": nn.Tanh, "Identity": nn.Identity, "ReLU": nn.ReLU, "GELU": nn.GELU, "SiLU": nn.SiLU}


class Module(msgspec.Struct):
    """An entry of `modules.json`."""

    path: str
    type: str


@dataclass(frozen=True, kw_only=True)
class SentenceLayers:
    """The layers of a checkpoint.

    Attributes:
        folder: the folder of the encoder in that of the checkpoint; empty where it is the same.
        poolings: names of `export.networks.sentence_embedding.POOLINGS`.
        dense: layers behind the pooling.
        normalize: whether the last layer scales vectors to length 1.
        max_tokens: the longest text; None: as long as the encoder takes.
        lower_case: whether texts are converted to lower case.
        prompts: texts to put before an input, by name.
        default_prompt: name of the prompt where a request names none.
        similarity: "cosine" or "dot".
        are_assumed: whether the checkpoint has no layers of its own, so that the mean of the tokens is taken.
    """

    folder: str = ""
    poolings: Sequence[str] = (DEFAULT_POOLING,)
    dense: Sequence[nn.Module] = ()
    normalize: bool = False
    max_tokens: int | None = None
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str = "cosine"
    are_assumed: bool = False

    def provenance(self) -> dict[str, Any]:
        """Return what a model card says of the layers."""
        pooling = " and ".join(name.replace("_", " ") for name in self.poolings)
        assumed = ", for the checkpoint names none" if self.are_assumed else ""
        return {"pooling": pooling + assumed, "vectors": "of length 1" if self.normalize else "as pooled"}


def read_sentence_layers(name_or_path: str) -> SentenceLayers:
    """Read the layers of a checkpoint; one without `modules.json` gets the mean of its tokens.

    Raises:
        LoadRefused: a layer is damaged, or is not offered.
    """
    path = path_of(name_or_path, MODULES)
    if path is None:
        return SentenceLayers(are_assumed=True)
    with reading(MODULES):
        modules = msgspec.json.decode(path.read_bytes(), type=list[Module])
    kinds = [module.type.rsplit(".", maxsplit=1)[-1] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= {"Dense", "Normalize"}:
        raise LoadRefused(
            f"{MODULES} has {', '.join(kinds)}; Transformer, Pooling, and then Dense and Normalize are offered"
        )
    if "Normalize" in kinds[:-1]:
        raise LoadRefused(f"{MODULES} has {', '.join(kinds)}; Normalize is offered as the last layer")
    transformer, pooling = modules[:2]
    own = read_object(name_or_path, OWN_CONFIG)
    limits = read_object(name_or_path, str(Path(transformer.path, TRANSFORMER_CONFIG)))
    similarity = own.get("similarity_fn_name") or "cosine"
    if similarity not in {"cosine", "dot"}:
        raise LoadRefused(f"{OWN_CONFIG}: similarity_fn_name {similarity!r} is not offered; cosine and dot are")
    return SentenceLayers(
        folder=transformer.path,
        poolings=_poolings(read_object(name_or_path, f"{pooling.path}/config.json"), pooling.path),
        dense=[
            layer
            for module, kind in zip(modules, kinds, strict=True)
            if kind == "Dense"
            for layer in _dense(name_or_path, module.path)
        ],
        normalize=kinds[-1] == "Normalize",
        max_tokens=limits.get("max_seq_length"),
        lower_case=bool(limits.get("do_lower_case")),
        prompts={str(name): str(text) for name, text in (own.get("prompts") or {}).items()},
        default_prompt=own.get("default_prompt_name"),
        similarity=similarity,
    )


def _poolings(config: dict[str, Any], path: str) -> list[str]:
    """Return the names of the poolings that a layer joins.

    Raises:
        LoadRefused: the layer names none, or one that is not offered.
    """
    if config.get("include_prompt") is False:
        raise LoadRefused(f"{path}/config.json: include_prompt is false: prompts that are not pooled are not offered")
    given = config.get("pooling_mode")
    if isinstance(given, str):
        modes = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "weightedmean": "weightedmean_tokens"}
        names = [modes.get(each, each) for each in given.split("+")]
    else:
        prefix = "pooling_mode_"
        names = [
            name.removeprefix(prefix) for name, value in config.items() if name.startswith(prefix) and value is True
        ]
    # The order in which sentence-transformers puts the vectors.
    order = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    if not names or not set(names) <= set(POOLINGS):
        raise LoadRefused(
            f"{path}/config.json: pooling {', '.join(names) or 'is missing'}; offered: {', '.join(POOLINGS)}"
        )
    return sorted(names, key=order.index)


def _dense(name_or_path: str, path: str) -> list[nn.Module]:
    """Load a dense layer with its activation.

    Raises:
        LoadRefused: weights are missing or damaged, or the activation is not offered.
    """
    config = read_object(name_or_path, f"{path}/config.json")
    activation = str(config.get("activation_function", "Identity")).rsplit(".", maxsplit=1)[-1]
    if activation not in ACTIVATIONS:
        raise LoadRefused(f"{path}: activation {activation!r} is not offered; offered: {', '.join(ACTIVATIONS)}")
    with reading(f"the layer {path} of {name_or_path} cannot be loaded"):
        linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
        if (weights := path_of(name_or_path, f"{path}/model.safetensors")) is not None:
            state = load_file(weights)
        elif (weights := path_of(name_or_path, f"{path}/pytorch_model.bin")) is not None:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        else:
            raise LoadRefused(f"the layer {path} of {name_or_path} has no weights")
        linear.load_state_dict({name.removeprefix("linear."): weight.float() for name, weight in state.items()})
    return [linear, ACTIVATIONS[activation]()]
