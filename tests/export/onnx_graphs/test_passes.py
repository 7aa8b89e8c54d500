"""Attention in exported graphs: its operator, and the bias that hides padding."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export.conversion.classifier import export_onnx
from export.conversion.golden_texts import made_up_sentences
from export.conversion.model_source import text_source_of_run
from export.conversion.text_source import TextClassifierSource
from export.networks.transformer import HIDDEN
from export.onnx_graphs.passes import OPSET, use_own_attention, use_standard_attention
from tests.conftest import ROOT
from tests.export.conversion.outputs import onnx_logits

# Those of texts: images are not padded, and the graphs that explain write attention out.
COMMITTED = [
    path
    for path in sorted((ROOT / "model_store").glob("*/[0-9]*/*.onnx"))
    if path.parts[-3].startswith(("sentiment", "translation")) and path.name != "explain.onnx"
]


@pytest.fixture(scope="module")
def source(toy_run: Path) -> TextClassifierSource:
    """A small classifier."""
    found = text_source_of_run(toy_run)
    assert isinstance(found, TextClassifierSource)
    return found


def operators_of(model: onnx.ModelProto) -> set[str]:
    """Return the types of a graph's nodes."""
    return {node.op_type for node in model.graph.node}


def test_the_standard_attention_operator_computes_the_same(source: TextClassifierSource, tmp_path: Path) -> None:
    """Compares batches of mixed length; `use_own_attention` restores the exported graph."""
    path, texts = tmp_path / "model.onnx", made_up_sentences(64)
    export_onnx(source, path)
    exported, expected_BC = onnx.load(path), onnx_logits(source, path, texts)
    use_standard_attention(path)
    standard = onnx.load(path)
    assert "Attention" in operators_of(standard)
    assert "MultiHeadAttention" not in operators_of(standard)
    np.testing.assert_allclose(onnx_logits(source, path, texts), expected_BC, atol=1e-6, rtol=0)
    use_own_attention(standard)
    assert operators_of(standard) == operators_of(exported)
    assert {imported.version for imported in standard.opset_import if not imported.domain} == {OPSET}
    onnx.save(standard, path)
    np.testing.assert_array_equal(onnx_logits(source, path, texts), expected_BC)


def test_the_weight_of_padding_is_negligible_and_a_normal_number() -> None:
    """A subnormal weight would slow down every product with it."""
    weight = np.exp(np.float32(HIDDEN))
    assert weight > np.finfo(np.float32).tiny
    assert np.float32(1.0) + np.float32(512) * weight == np.float32(1.0)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: "/".join(path.parts[-3:]))
def test_committed_graphs_have_the_attention_that_conversion_writes(path: Path) -> None:
    """e^-50 hides padding in all of them, and graphs with a bias have the standard operator."""
    graph = onnx.load(path, load_external_data=False).graph
    numbers = {float(numpy_helper.to_array(each)) for each in graph.initializer if not each.dims and each.raw_data}
    attending = [node for node in graph.node if node.op_type in ("Attention", "MultiHeadAttention")]
    assert attending
    for node in attending:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "MultiHeadAttention" and len(node.input) == 5:
            assert attributes["mask_filter_value"] == HIDDEN
        else:
            assert (node.op_type == "Attention") == (".float16." not in path.name)
            assert HIDDEN in numbers
