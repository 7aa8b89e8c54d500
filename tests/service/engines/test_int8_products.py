"""int8 products are exact, on every CPU."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from export.onnx_graphs.passes import cpu_session
from service.engines.host import EngineHost
from service.engines.int8_products import cpu_flags, session_entries
from service.engines.onnx import OnnxEngine
from service.engines.onnx_session import session_options
from tests.conftest import write_onnx

EXACT = {"session.x64quantprecision": "1"}
WIDTH = 64


@pytest.mark.parametrize(
    ("flags", "machine", "expected"),
    [
        ({"sse4_1", "avx2"}, "x86_64", EXACT),
        ({"avx2", "avx512f", "avx512bw", "avx512vl"}, "x86_64", EXACT),
        (set(), "x86_64", EXACT),
        ({"avx2"}, "AMD64", EXACT),
        ({"avx2", "avx512f", "avx512_vnni"}, "x86_64", {}),
        ({"avx2", "avx_vnni"}, "x86_64", {}),
        (set(), "aarch64", {}),
    ],
)
def test_exact_kernels_are_asked_for_where_the_cpu_lacks_vnni(
    flags: set[str], machine: str, expected: dict[str, str]
) -> None:
    """x86-64 CPUs without VNNI, or of unknown flags, get the option; VNNI and other architectures do not."""
    assert session_entries(flags, machine) == expected


def test_flags_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    """The first processor's line counts; a machine without the file has no flags."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(cpuinfo) == {"fpu", "avx2", "avx512_vnni"}
    assert cpu_flags(tmp_path / "none") == frozenset()


def test_every_session_of_the_server_has_the_entries_of_this_machine() -> None:
    """What this machine's CPU needs is set in the options that all sessions are opened with."""
    options = session_options(1)
    for name, value in session_entries().items():
        assert options.get_session_config_entry(name) == value


@pytest.mark.parametrize("quantized", ["MatMulInteger", "DynamicQuantizeLinear"])
def test_the_largest_products_are_exact(tmp_path: Path, quantized: str) -> None:
    """255 x 127, added 64 times, is not cut off at 32,767: neither where models are served nor where they are made.

    Pairs of such products leave 16 bits, which is where CPUs without VNNI saturate.
    """
    weights = helper.make_tensor("w", TensorProto.INT8, [WIDTH, 1], [127] * WIDTH)
    constant = helper.make_node("Constant", [], ["w"], value=weights)
    if quantized == "MatMulInteger":
        nodes = [constant, helper.make_node("MatMulInteger", ["x", "w"], ["y"])]
        x, x_type = np.full((1, WIDTH), 255, np.uint8), TensorProto.UINT8
    else:
        nodes = [
            constant,
            helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "scale", "zero_point"]),
            helper.make_node("MatMulInteger", ["xq", "w", "zero_point"], ["y"]),
        ]
        x, x_type = np.full((1, WIDTH), 255.0, np.float32), TensorProto.FLOAT
    write_onnx(
        tmp_path / "products",
        nodes,
        {"x": (x_type, ["rows", WIDTH])},
        {"y": (TensorProto.INT32, ["rows", 1])},
    )
    graph = tmp_path / "products/model.onnx"
    assert OnnxEngine(graph, 1, EngineHost()).run({"x": x})["y"].tolist() == [[255 * 127 * WIDTH]]
    assert cpu_session(graph).run(["y"], {"x": x})[0].tolist() == [[255 * 127 * WIDTH]]
