"""The graphs that explain: attention and gradients equal PyTorch's, and weights are not stored twice."""

import dataclasses
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from export.__main__ import main
from export.conversion import explanation_graph as explain_graphs
from export.conversion.classifier import convert, describe, export_onnx
from export.conversion.comparison import explanation
from export.conversion.comparison.classifier import Comparison
from export.conversion.comparison.explanation import (
    ExplainGraph,
    ExplainRefused,
    Row,
    batch_of,
    completeness_gap,
    require_explained,
)
from export.conversion.explanation_graph import (
    add_to_store,
    export_explain_graph,
    golden_rows,
    replay_golden_rows,
)
from export.conversion.model_folder.publishing import put_into_store
from export.conversion.model_source import ImageClassifierSource
from export.conversion.text_source import TextClassifierSource, optimized_as_bert
from export.conversion.translation import convert_translation
from export.conversion.translation_source import translation_source_of_run
from export.networks.image import VisionTransformer, VitConfig
from export.networks.transformer import EncoderConfig, PackedTextClassifier, TextClassifier, rotate
from export.networks.translation import TranslationConfig, TranslationTransformer
from export.onnx_graphs.explanation_modules import (
    ExplainedTextClassifier,
    ExplainedTranslation,
    ExplainedVisionTransformer,
)
from export.onnx_graphs.import_weights import NotUnderstood, stored_network
from export.onnx_graphs.passes import halve, halve_exact_weights, quantize
from export.onnx_graphs.translation import export_decoder_step, export_encoder
from export.tasks.task import task_of
from model_store.folder import (
    CARD,
    EXPLAIN,
    GOLDEN,
    GRAPH,
    FolderError,
    FoundFolder,
    GoldenExample,
    Manifest,
    read,
    sha256,
    write_manifest,
)
from tests.conftest import ROOT, noise_files, untrained_image_sources
from tests.toy_translation import toy_pairs

LAYERS = {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_ff": 64}
VOCABULARY = 21000  # of the tokenizer that is borrowed
TEXTS = {
    "before each part, mean": {"norm_position": "pre", "positions": "sinusoidal", "embedding_width": 16},
    "behind each part, first token": {
        "norm_position": "post",
        "positions": "learned",
        "pooling": "cls",
        "embedding_norm": True,
        "embedding_scale": False,
        "activation": "relu",
        "norm_eps": 1e-12,
    },
    "rotary, gated, greatest": {"positions": "rotary", "activation": "swiglu", "pooling": "max", "norm": "rmsnorm"},
}
IMAGES = {
    "patches": {"tokens": "patches", "norm_position": "post"},
    "convolutions": {"tokens": "convolutions", "pooling": "attention", "positions": "learned"},
}
# One of them in every run of the tests, the others by `make test-slow`: each takes 10 to 30 s.
NETWORKS = [
    "before each part, mean",
    *(pytest.param(name, marks=pytest.mark.slow) for name in [*[*TEXTS, *IMAGES][1:], "translation"]),
]


def network_of(name: str) -> nn.Module:
    """Build a small network with random float16 weights that make attention uneven."""
    torch.manual_seed(5)
    network: nn.Module
    if name in TEXTS:
        settings: Any = LAYERS | {"pooling": "mean", "max_tokens": 128} | TEXTS[name]
        network = TextClassifier(EncoderConfig(vocab_size=VOCABULARY, num_labels=3, **settings))
    elif name in IMAGES:
        settings = LAYERS | {"image_size": 16, "num_labels": 5} | IMAGES[name]
        network = VisionTransformer(VitConfig(**settings))
    else:
        settings = LAYERS | {"activation": "relu", "max_tokens": 40}
        network = TranslationTransformer(TranslationConfig(vocab_size=60, num_decoder_layers=3, **settings))
    with torch.no_grad():
        for weight in network.parameters():
            noise = torch.randn_like(weight) * (0.2 if weight.dim() > 1 else 0.1)
            weight.copy_((weight + noise).half())
    return network.eval()


def source_of(name: str) -> TextClassifierSource | ImageClassifierSource:
    """Build a classifier source."""
    network: Any = network_of(name)
    if name in IMAGES:
        return ImageClassifierSource(module=network, labels=list("abcde"), image_size=16, model_type="heed-vit")
    return TextClassifierSource(
        module=network,
        for_export=lambda: PackedTextClassifier(network),
        skips_padding=True,
        input_names=("input_ids", "attention_mask"),
        tokenizer_json=(ROOT / "model_store/sentiment-small/1/tokenizer.json").read_text(),
        labels=list("abc"),
        max_tokens=128,
        pad_id=0,
        optimized_as=optimized_as_bert(LAYERS["num_heads"], LAYERS["d_model"]),
        model_type="heed-encoder",
    )


@functools.cache
def exported_graph(name: str) -> bytes:
    """Export the graph of a classifier; cached, because it takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(source_of(name), Path(folder) / GRAPH)
        return (Path(folder) / GRAPH).read_bytes()


@functools.cache
def explaining_graph(name: str) -> bytes:
    """Export the graph that explains a classifier in float32, for `classifier_folder`'s folder; cached as well."""
    with tempfile.TemporaryDirectory() as folder:
        classifier_folder(name, Path(folder))
        kind = ExplainedTextClassifier if name in TEXTS else ExplainedVisionTransformer
        export_explain_graph(kind(network_of(name)), Path(folder))
        return (Path(folder) / EXPLAIN).read_bytes()


def classifier_folder(name: str, folder: Path, precision: str = "float32") -> Manifest:
    """A folder that is complete but for card, manifest and the graph that explains."""
    source = source_of(name)
    (folder / GRAPH).write_bytes(exported_graph(name))
    {"float32": halve_exact_weights, "int8": quantize, "float16": halve}[precision](folder / GRAPH)
    seen = Comparison(500, 0.0 if precision == "float32" else 0.5, 0)
    task = "text-classification" if isinstance(source, TextClassifierSource) else "image-classification"
    return describe(source, task_of(task), folder, "toy", precision, seen, {"compared_with_pytorch": {}}, {})  # type: ignore[arg-type]


def rows_of(network: nn.Module, count: int = 6) -> list[Row]:
    """Random inputs of different length and their alphas, the first of them 1."""
    rng = np.random.default_rng(3)
    alphas = [1.0, *rng.uniform(0, 1, count - 1)]
    rows = []
    for number, alpha in enumerate(alphas):
        feeds: dict[str, Any] = {"alpha": np.float32(alpha)}
        if isinstance(network, VisionTransformer):
            feeds |= {"pixel_values": rng.normal(size=(3, 16, 16)).astype(np.float32), "target": np.int64(number % 5)}
        elif isinstance(network, TextClassifier):
            ids = rng.integers(1, VOCABULARY, 3 + 5 * number)
            feeds |= {"input_ids": ids, "attention_mask": np.ones_like(ids), "target": np.int64(number % 3)}
        else:
            source, written = rng.integers(3, 60, 2 + 3 * number), rng.integers(3, 60, 14 - 2 * number)
            feeds |= {"source_ids": source, "source_mask": np.ones_like(source)}
            feeds |= {"target_ids": written, "target_mask": np.ones_like(written)}
        rows.append(Row(number, feeds))
    return rows


def by_hooks(network: Any, row: Row) -> dict[str, Tensor]:
    """Compute one row alone with the trained network, hooks and torch.autograd: the expected values.

    The weights are what attention makes of values that are a unit matrix.
    """
    alpha, seen, weights, cross = float(row.feeds["alpha"]), list[Tensor](), list[Tensor](), list[Tensor]()
    given = {name: torch.from_numpy(np.asarray(array))[None] for name, array in row.feeds.items()}
    is_image = isinstance(network, VisionTransformer)

    def scale(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if seen:
            return None  # the target's words
        with torch.no_grad():
            baseline = torch.zeros_like(output)
            if is_image:
                seen.append(baseline)  # what comes next is no input
                baseline = module(torch.zeros_like(inputs[0]))
                seen.clear()
        seen.extend([(baseline + alpha * (output - baseline)).detach().requires_grad_(), output.detach() - baseline])
        return seen[0]

    def watch(module: Any, inputs: Any) -> None:
        x_1TD, bias = inputs[0], inputs[1] if len(inputs) > 1 else None
        _, T, D = x_1TD.shape
        query, key, _ = module.qkv(x_1TD).view(1, T, 3, 4, D // 4).permute(2, 0, 3, 1, 4).unbind(0)
        if module.rotary:
            query, key = (rotate(each, module.cos_TK[:T], module.sin_TK[:T]) for each in (query, key))
        weights.append(functional.scaled_dot_product_attention(query, key, torch.eye(T).expand(1, 4, T, T), bias))

    def watch_cross(module: Any, inputs: Any) -> None:
        x_1TD, key_1HSK, _, bias = inputs
        query = module.query(x_1TD).unflatten(-1, (4, -1)).transpose(1, 2)
        unit = torch.eye(key_1HSK.size(2)).expand(1, 4, -1, -1)
        cross.append(functional.scaled_dot_product_attention(query, key_1HSK, unit, bias))

    watched = network.tokens if is_image else network.embedding
    hooks = [watched.register_forward_hook(scale)]
    layers = network.encoder if isinstance(network, TranslationTransformer) else network.layers
    hooks += [layer.attention.register_forward_pre_hook(watch) for layer in layers]
    if isinstance(network, TranslationTransformer):
        hooks += [layer.cross.register_forward_pre_hook(watch_cross) for layer in network.decoder]
        written = given["target_ids"]
        before = torch.cat((torch.tensor([[1]]), written[:, :-1]), dim=1)
        logits = network(given["source_ids"], given["source_mask"], before, torch.ones_like(before))
        answer = torch.log_softmax(logits, dim=-1).gather(1, written.T)[:, 0]
        told = {
            "log_probabilities": answer,
            "cross_attention": torch.cat(cross),
            "encoder_attention": torch.cat(weights),
        }
    else:
        names = ("pixel_values",) if is_image else ("input_ids", "attention_mask")
        logits = network(*(given[name] for name in names))[0]
        answer = logits[int(row.feeds["target"])]
        told = {"logits": logits, "attention": torch.cat(weights)}
    for hook in hooks:
        hook.remove()
    (gradient,) = torch.autograd.grad(answer.sum(), seen[0])
    fraction = gradient * seen[1]
    told["attribution"] = fraction.sum(dim=1).flatten() if is_image else fraction.sum(dim=-1)[0]
    return {name: tensor.detach() for name, tensor in told.items()}


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A network, and the folder with its served graphs and the one that explains."""
    name, folder = request.param, tmp_path_factory.mktemp("explained")
    network: Any = network_of(name)
    if name == "translation":
        export_encoder(network, folder / "encoder.onnx")
        export_decoder_step(network, folder / GRAPH)
        halve_exact_weights(folder / "encoder.onnx")
        halve_exact_weights(folder / GRAPH)
        export_explain_graph(ExplainedTranslation(network, bos_id=1), folder)
    else:
        classifier_folder(name, folder)
        (folder / EXPLAIN).write_bytes(explaining_graph(name))
    return network, folder


def test_answers_attention_and_gradients_equal_pytorchs(exported: tuple[nn.Module, Path]) -> None:
    """Rows of different length and alpha in one batch equal each row alone in PyTorch."""
    network, folder = exported
    rows = rows_of(network)
    found = ExplainGraph(folder)(rows)
    for number, row in enumerate(rows):
        expected = by_hooks(network, row)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            part = found[name][number][tuple(slice(size) for size in tensor.shape)]
            scale = max(1.0, float(tensor.abs().max()))
            np.testing.assert_allclose(part / scale, tensor.numpy() / scale, atol=2e-5, err_msg=f"{name} of {number}")
            outside = found[name][number].sum() - part.sum()
            if name in {"attribution", "log_probabilities"}:
                assert abs(outside) < 1e-4 * scale  # padding gets nothing
    assert float(np.abs(found["attribution"]).max()) > 0.1


def test_attention_rows_sum_to_one_over_the_real_tokens(exported: tuple[nn.Module, Path]) -> None:
    """Padding gets no weight."""
    network, folder = exported
    rows = rows_of(network)
    found, masks = ExplainGraph(folder)(rows), batch_of(rows)
    names = {"attention": "attention_mask", "encoder_attention": "source_mask", "cross_attention": "source_mask"}
    for name in names.keys() & found.keys():
        np.testing.assert_allclose(found[name].sum(axis=-1), 1.0, atol=1e-5)
        if (mask_BT := masks.get(names[name])) is not None:
            assert float((found[name] * (1 - mask_BT)[:, None, None, None]).max()) == 0.0
        assert float(found[name].std()) > 0.01  # they are not all alike


# Not the rotary one: normalisation undoes every alpha but 0, where its answer jumps.
@pytest.mark.parametrize("exported", [each for each in NETWORKS if "rotary" not in str(each)], indirect=True)
def test_attributions_sum_to_the_difference_to_the_baseline(exported: tuple[nn.Module, Path]) -> None:
    """Sundararajan et al. 2017, proposition 1; more steps leave a smaller gap."""
    network, folder = exported
    graph = ExplainGraph(folder)
    for row in rows_of(network, 3):
        assert completeness_gap(graph, row, 128) < 0.05
    few, many = (sum(completeness_gap(graph, row, steps) for row in rows_of(network, 3)) for steps in (4, 128))
    assert many < few


def test_weights_are_not_stored_twice(exported: tuple[nn.Module, Path]) -> None:
    """The graph itself stores only constants that are no weights; all weights lie in the files of the served graphs."""
    network, folder = exported
    graph = onnx.load(folder / EXPLAIN, load_external_data=False).graph
    own = sum(len(tensor.raw_data) for tensor in graph.initializer)
    locations = {
        entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    assert own < 8_000  # biases of this size are not worth it
    assert locations <= {GRAPH, "encoder.onnx"}
    external = [tensor for tensor in graph.initializer if tensor.external_data]
    assert sum(int(np.prod(tensor.dims)) for tensor in external) > 0.7 * sum(w.numel() for w in network.parameters())


@pytest.mark.parametrize("name", [*TEXTS, *IMAGES])
def test_a_network_is_read_back_from_its_graph(name: str, tmp_path: Path) -> None:
    """The shape is the same and the weights are bit-identical; positions become a table."""
    classifier_folder(name, tmp_path)
    network, found = network_of(name), stored_network(tmp_path).module
    ours, theirs = dataclasses.asdict(network.config), dataclasses.asdict(found.config)  # type: ignore[arg-type]
    passed_over = {"positions", "dropout", "norm_eps", "max_tokens", "patch_size", "num_convolutions"}
    assert {key: ours[key] for key in ours.keys() - passed_over} == {
        key: theirs[key] for key in ours.keys() - passed_over
    }
    for key, weight in network.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], weight, atol=0, rtol=0)


def in_a_store(name: str, store: Path, precision: str = "float32") -> Path:
    """Write a version of model "toy" without the graph that explains."""
    making = store / "making"
    making.mkdir(parents=True)
    manifest = classifier_folder(name, making, precision)
    return put_into_store(
        making, manifest, task_of(manifest.task), store, lambda manifest, version: f"# toy, version {version}\n"
    )


def ask_for_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["export", "explain-graph", str(folder)])
    return main()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8", "float16"])
def test_explain_graph_adds_the_graph_to_a_version(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running the command again replaces the graph.

    Served files stay, card and manifest name it, golden rows hold and can fail.
    """
    folder = in_a_store("before each part, mean", tmp_path, precision)
    served = {path.name: sha256(path) for path in folder.iterdir() if path.name not in {CARD, "manifest.json"}}
    for _ in range(2 if precision == "float32" else 1):  # a second graph takes the place of the first in any precision
        assert ask_for_one(folder, monkeypatch) == 0
        manifest = read(FoundFolder("toy", "1", folder)).manifest
        assert manifest is not None
        assert manifest.files.items() >= served.items()
        assert manifest.files.keys() == {*served, CARD, EXPLAIN, "golden.explain.json"}
        card = (folder / CARD).read_text()
        assert card.startswith("# toy, version 1\n")
        assert card.count("## Explained") == 1
        assert (f"the weights as {precision} rounds them" in card) == (precision != "float32")
    worst = replay_golden_rows(folder, task_of(manifest.task))
    assert worst.keys() == {"logits", "attention", "attribution"}
    assert max(worst.values()) < 1e-4
    assert not list(folder.parent.glob(".*"))
    graph = onnx.load(folder / EXPLAIN, load_external_data=False)
    softmax = next(node for node in reversed(graph.graph.node) if node.op_type == "Softmax")
    softmax.attribute[0].i = 1  # over the heads
    (folder / EXPLAIN).write_bytes(graph.SerializeToString())
    with pytest.raises(FolderError, match=f"{EXPLAIN} is damaged"):
        replay_golden_rows(folder, task_of(manifest.task))
    write_manifest(folder, manifest)
    with pytest.raises(ExplainRefused, match="golden example 0: off by"):
        replay_golden_rows(folder, task_of(manifest.task))


@pytest.mark.slow
def test_another_network_is_refused(tmp_path: Path) -> None:
    """A network with other answers than the served graph's, or other gradients, is refused."""
    manifest = classifier_folder("before each part, mean", tmp_path)
    stored = stored_network(tmp_path)
    task = task_of(manifest.task)
    network = task.explained(stored, tmp_path)
    golden = msgspec.json.decode((tmp_path / GOLDEN).read_bytes(), type=list[GoldenExample])
    rows = golden_rows(tmp_path, manifest, task, golden)
    (tmp_path / EXPLAIN).write_bytes(explaining_graph("before each part, mean"))
    require_explained(tmp_path, network, rows, task.served_difference, 1e-4)
    with torch.no_grad():
        stored.module.layers[0].attention.out.weight.mul_(0.5)  # type: ignore[union-attr,operator]
    with pytest.raises(ExplainRefused, match="logits against PyTorch"):
        require_explained(tmp_path, network, rows, task.served_difference, 1e-4)
    export_explain_graph(network, tmp_path)
    with pytest.raises(ExplainRefused, match="answers against the served graph"):
        require_explained(tmp_path, network, rows, task.served_difference, 1e-4)


@pytest.mark.slow
def test_a_refusal_leaves_the_folder_unchanged(tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """The partly written new graph is removed."""
    name = "before each part, mean"
    folder = in_a_store(name, tmp_path)
    before = {path.name: sha256(path) for path in folder.iterdir()}

    def export_again(network: object, folder: Path) -> None:
        (folder / EXPLAIN).write_bytes(explaining_graph(name))

    monkeypatch.setattr(explain_graphs, "export_explain_graph", export_again)
    monkeypatch.setitem(explanation.TOLERANCE, "attribution", -1.0)
    with pytest.raises(ExplainRefused, match="attribution against PyTorch: off by up to .* \\(allowed: -1\\)"):
        add_to_store(folder, task_of, quiet)
    assert {path.name: sha256(path) for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


def bare(folder: Path) -> None:
    """Remove all files but the graph."""
    for path in folder.iterdir():
        if path.name != GRAPH:
            path.unlink()


def of_another_kind(folder: Path) -> None:
    """Replace the configuration by one of an unknown network."""
    manifest = read(FoundFolder("toy", "1", folder)).manifest
    assert manifest is not None
    (folder / "config.json").write_text('{"model_type": "bert"}')
    write_manifest(folder, manifest)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [(bare, "is a bare ONNX graph"), (of_another_kind, "holds a network of the kind 'bert': only heed-encoder")],
)
def test_unreadable_networks_are_refused(
    damage: Callable[[Path], None], expected: str, tmp_path: Path, quiet: Console
) -> None:
    """The message has the reason; a path that is no version's folder is refused too."""
    folder = in_a_store("before each part, mean", tmp_path)
    damage(folder)
    with pytest.raises(NotUnderstood, match=expected):
        add_to_store(folder, task_of, quiet)
    with pytest.raises(FolderError, match="is not a version's folder"):
        add_to_store(folder.parent, task_of, quiet)


@pytest.mark.slow
def test_a_converted_translation_model_explains_itself(
    toy_translation_run: Path, tmp_path: Path, quiet: Console
) -> None:
    """`convert` writes the graph and its golden rows, with weights of both served graphs."""
    folder = convert_translation(
        translation_source_of_run(toy_translation_run),
        task_of("translation"),
        name="dogs",
        store=tmp_path,
        compare_on={"dogs": toy_pairs(500, 4)},
        precision="float32",
        about={},
        console=quiet,
        halved=False,
    )
    assert replay_golden_rows(folder, task_of("translation")).keys() == {
        "log_probabilities",
        "cross_attention",
        "encoder_attention",
        "attribution",
    }


@pytest.mark.slow
@pytest.mark.parametrize(("name", "offered"), [("vit", True), ("resnet9", False)])
def test_converted_images_explain_themselves(name: str, offered: bool, tmp_path: Path, quiet: Console) -> None:
    """A vision transformer gets the graph; a network without attention does not."""
    folder = convert(
        untrained_image_sources()[name],
        task_of("image-classification"),
        name=name,
        store=tmp_path,
        compare_on=noise_files(500),
        labelled=None,
        precision="float32",
        about={},
        console=quiet,
    )
    assert (folder / EXPLAIN).exists() is offered
    if offered:
        assert replay_golden_rows(folder, task_of("image-classification")).keys() == {
            "logits",
            "attention",
            "attribution",
        }
