"""Requests share engine calls by proof, by declaration, or not at all, in real servers and engines."""

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from proto import inference_pb2, inference_pb2_grpc
from tests.conftest import Server, running_server, write_onnx

DTYPES = {"FP32": np.dtype(np.float32), "INT64": np.dtype(np.int64)}
NUM_CLIENTS = 16


def write_bare(store: Path, name: str, nodes: list[Any], columns: int | str = 64, **initializers: Any) -> Path:
    """One input x and one output y, float32 of any number of rows; opset 17, with initializers."""
    folder = store / name / "1"
    tensors = {"x": (TensorProto.FLOAT, ["batch", columns])}, {"y": (TensorProto.FLOAT, None)}
    write_onnx(folder, nodes, *tensors)
    for initializer, value in initializers.items():
        add_initializer(folder, initializer, np.asarray(value))
    return folder


def write_collatz(folder: Path) -> None:
    """The steps of the Collatz sequence until all numbers are 1: for a 0 among them it never ends."""
    node = helper.make_node
    constants = {"zero": 0, "one": 1, "two": 2, "three": 3}
    body = helper.make_graph(
        [
            node("Mod", ["v", "two"], ["rest"]),
            node("Equal", ["rest", "zero"], ["even"]),
            node("Div", ["v", "two"], ["half"]),
            node("Mul", ["v", "three"], ["triple"]),
            node("Add", ["triple", "one"], ["more"]),
            node("Where", ["even", "half", "more"], ["next"]),
            node("Equal", ["v", "one"], ["ended"]),
            node("Where", ["ended", "one", "next"], ["v_out"]),
            node("Sub", ["v_out", "one"], ["left"]),
            node("ReduceMax", ["left"], ["most"], keepdims=0),
            node("Cast", ["most"], ["goes_on"], to=TensorProto.BOOL),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("went_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.INT64, ["n"]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_out", TensorProto.INT64, ["n"]),
        ],
        [numpy_helper.from_array(np.int64(value), name) for name, value in constants.items()],
    )
    loop = node("Loop", ["", "true", "n"], ["y"], body=body)
    write_onnx(folder, [loop], {"n": (TensorProto.INT64, ["batch"])}, {"y": (TensorProto.INT64, ["batch"])})
    add_initializer(folder, "true", np.bool_(True))


def add_initializer(folder: Path, name: str, value: Any, ir_version: int = 9) -> None:
    """Give the graph of a folder one more initializer."""
    model = onnx.load(folder / "model.onnx")
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.ir_version = ir_version
    onnx.save(model, folder / "model.onnx")


def write_store(store: Path) -> None:
    """Write graphs with dependent rows, with independent rows, and with declarations."""
    node = helper.make_node
    layer = np.random.default_rng(7).standard_normal((64, 8)).astype(np.float32)
    write_bare(store, "layer", [node("MatMul", ["x", "w"], ["y"])], w=layer)
    mean = [node("ReduceMean", ["x"], ["m"], keepdims=0), node("Sub", ["x", "m"], ["y"])]
    write_bare(store, "centred", mean)
    scaled = [
        node("ReduceMax", ["x"], ["m"], keepdims=0),
        node("Greater", ["m", "one"], ["large"]),
        node("Where", ["large", "k", "one"], ["d"]),
        node("Div", ["x", "d"], ["y"]),
    ]
    write_bare(store, "scaled-if-large", scaled, one=np.float32(1), k=np.float32(255))
    quantized = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    write_bare(store, "quantized", quantized)
    # Rows are independent, because the number of unique values is multiplied by 0.
    counted = [
        node("Unique", ["x"], ["u"]),
        node("Size", ["u"], ["n"]),
        node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["f", "nothing"], ["z"]),
        node("Add", ["x", "z"], ["y"]),
    ]
    for name in ("undeclared", "declared", "declared-by-triton"):
        write_bare(store, name, counted, nothing=np.float32(0))
    (store / "declared/policy.toml").write_text("[batching]\nrows_independent = true\n")
    (store / "declared-by-triton/config.pbtxt").write_text('name: "x"\nmax_batch_size: 4\n')
    write_bare(store, "layer-declared-dependent", [node("MatMul", ["x", "w"], ["y"])], w=layer)
    (store / "layer-declared-dependent/policy.toml").write_text("[batching]\nrows_independent = false\n")
    adding = [node("Add", ["a", "b"], ["y"])]
    sums = {"a": (TensorProto.FLOAT, ["n", 4]), "b": (TensorProto.FLOAT, ["m", 4])}
    write_onnx(store / "two-sizes/1", adding, sums, {"y": (TensorProto.FLOAT, ["n", 4])})
    unet = {"a": (TensorProto.FLOAT, ["batch", 3]), "b": (TensorProto.FLOAT, ["steps"])}
    steps = [node("Unsqueeze", ["b", "one"], ["c"]), node("Add", ["a", "c"], ["y"])]
    write_onnx(store / "steps/1", steps, unet, {"y": (TensorProto.FLOAT, ["batch", 3])})
    add_initializer(store / "steps/1", "one", np.array([1]))
    shapeless = {"a": (TensorProto.FLOAT, None), "b": (TensorProto.FLOAT, None)}
    write_onnx(store / "no-shapes/1", adding, shapeless, {"y": (TensorProto.FLOAT, None)})
    for name, ir_version in {"overridable": 8, "overridable-old": 3}.items():
        inputs = {"a": (TensorProto.FLOAT, ["n", 4]), "b": (TensorProto.FLOAT, [4])}
        write_onnx(store / name / "1", adding, inputs, {"y": (TensorProto.FLOAT, ["n", 4])})
        add_initializer(store / name / "1", "b", np.arange(4, dtype=np.float32), ir_version)
    write_collatz(store / "collatz/1")
    beside = write_bare(store, "tokenizer-beside", [node("MatMul", ["x", "w"], ["y"])], w=layer)
    for name in ("config.json", "tokenizer.json"):
        (beside / name).write_text("{}")
    write_bare(store, "misspelt", mean)
    (store / "misspelt/policy.toml").write_text("[batching]\nrow_independent = true\n")


@pytest.fixture(scope="module")
def bare_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of `write_store`."""
    store = tmp_path_factory.mktemp("bare") / "models"
    write_store(store)
    return store


@pytest.fixture(scope="module")
def bare_server(bare_store: Path) -> Iterator[Server]:
    """A server of this store, with one engine instance for each model so that batches form."""
    with running_server(bare_store, "--instances", "1") as running:
        yield running


def infer(server: Server, model: str, **inputs: Any) -> tuple[dict[str, Any], int]:
    """Return the outputs by name and the number of rows of the engine call."""
    request = inference_pb2.ModelInferRequest(model_name=model)
    for name, array in inputs.items():
        datatype = next(name for name, dtype in DTYPES.items() if dtype == array.dtype)
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    with grpc.insecure_channel(server.grpc) as channel:
        response = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
    outputs = {
        output.name: np.frombuffer(content, {"FP32": np.float32, "INT64": np.int64}[output.datatype]).reshape(
            output.shape
        )
        for output, content in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    return outputs, response.parameters["batch_size"].int64_param


def expected_of(store: Path, model: str, **inputs: Any) -> Any:
    """Compute the answer directly in ONNX Runtime."""
    return onnxruntime.InferenceSession(store / model / "1/model.onnx").run(["y"], inputs)[0]


def batching_of(server: Server) -> dict[str, str]:
    """The batching entry of the model index, by model."""
    models = httpx.get(f"{server.http}/v2/models").raise_for_status().json()["models"]
    return {model["name"]: model["batching"] for model in models}


@pytest.mark.parametrize("model", ["centred", "scaled-if-large", "quantized", "undeclared", "layer"])
def test_no_answer_depends_on_its_neighbours(model: str, bare_store: Path, bare_server: Server) -> None:
    """Clients with inputs of very different scale get what ONNX Runtime answers to each alone."""
    rng = np.random.default_rng(5)
    inputs = [(10.0 ** (n % 7 - 3) * (rng.standard_normal((1 + n % 3, 64)) + n)).astype(np.float32) for n in range(64)]
    with concurrent.futures.ThreadPoolExecutor(NUM_CLIENTS) as clients:
        answers = list(clients.map(lambda x: infer(bare_server, model, x=x)[0]["y"], inputs))
    for x, answer in zip(inputs, answers, strict=True):
        expected = expected_of(bare_store, model, x=x)
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("model", ["centred", "scaled-if-large", "quantized", "undeclared"])
def test_a_request_of_an_unproved_graph_is_computed_in_one_call(
    model: str, bare_store: Path, bare_server: Server
) -> None:
    """One client with a hundred rows of different scale gets exactly ONNX Runtime's result for these rows."""
    x = (np.logspace(-3, 3, 100)[:, None] * np.ones((100, 64))).astype(np.float32)
    outputs, rows_of_call = infer(bare_server, model, x=x)
    np.testing.assert_array_equal(outputs["y"], expected_of(bare_store, model, x=x))
    assert rows_of_call == 1


@pytest.mark.parametrize(("model", "largest_call"), [("layer", 64), ("declared", 64), ("declared-by-triton", 4)])
def test_calls_of_proved_graphs_have_bounded_rows(model: str, largest_call: int, bare_server: Server) -> None:
    """The bound is the server's limit or the declared one."""
    _, rows_of_call = infer(bare_server, model, x=np.ones((100, 64), np.float32))
    assert rows_of_call == largest_call


@pytest.mark.parametrize(
    ("model", "a", "b"),
    [
        ("two-sizes", (3, 4), (1, 4)),
        ("two-sizes", (3, 4), (3, 4)),
        ("two-sizes", (0, 4), (0, 4)),
        ("steps", (4, 3), (1,)),
        ("steps", (4, 3), (4,)),
        ("no-shapes", (2, 3, 4), (4,)),
        ("no-shapes", (), ()),
        ("no-shapes", (5,), (5,)),
        ("overridable", (2, 4), (4,)),
        ("overridable-old", (2, 4), (4,)),
    ],
)
def test_unusual_inputs_are_computed(model: str, a: tuple[int, ...], b: tuple[int, ...], bare_server: Server) -> None:
    """Inputs may differ in their first dimension, have no rows or no declared shape, or replace an initializer."""
    rng = np.random.default_rng(3)
    left, right = (rng.standard_normal(shape).astype(np.float32) for shape in (a, b))
    outputs, _ = infer(bare_server, model, a=left, b=right)
    np.testing.assert_array_equal(outputs["y"], left + (right[:, None] if model == "steps" else right))


@pytest.mark.parametrize("model", ["overridable", "overridable-old"])
def test_an_input_with_a_default_value_may_be_left_out(model: str, bare_server: Server) -> None:
    """The metadata name it; requests with and without it do not share a call, and an unknown input is still refused."""
    a = np.ones((2, 4), np.float32)
    assert httpx.get(f"{bare_server.http}/v2/models/{model}").json()["properties"]["optional_inputs"] == "b"

    def ask(b: float | None) -> Any:
        given = {} if b is None else {"b": np.full(4, b, np.float32)}
        return infer(bare_server, model, a=a, **given)[0]["y"].ravel().tolist()

    with concurrent.futures.ThreadPoolExecutor(NUM_CLIENTS) as clients:
        answers = list(clients.map(ask, [None, 1.0, 2.0] * 16))
    assert answers == [[1.0, 2.0, 3.0, 4.0] * 2, [2.0] * 8, [3.0] * 8] * 16
    with pytest.raises(grpc.RpcError) as refusal:
        infer(bare_server, model, a=a, c=a)
    assert refusal.value.details() == "unknown input c; the model has a, b"


def test_the_index_the_metadata_and_the_log_say_why(bare_server: Server) -> None:
    """They say proved, declared, or name the operator that mixes rows."""
    said = batching_of(bare_server)
    assert said["layer"] == "proved"
    assert said["declared"] == "declared independent in policy.toml"
    assert said["declared-by-triton"] == "declared independent in config.pbtxt"
    assert said["layer-declared-dependent"] == "declared dependent in policy.toml"
    for model, operator in {
        "centred": "ReduceMean",
        "scaled-if-large": "ReduceMax",
        "quantized": "DynamicQuantizeLinear",
        "undeclared": "Unique",
    }.items():
        assert said[model].startswith("not joined: ")
        assert operator in said[model]
        properties = httpx.get(f"{bare_server.http}/v2/models/{model}").json()["properties"]
        assert properties["batching"] == said[model]
        entry = bare_server.wait_for("model is served without batching", model=model)
        assert entry["why"] == said[model]
        assert bare_server.wait_for("model ready", model=model)["batching"] == said[model]


def test_a_graph_that_never_ends_for_some_values_is_loaded(bare_server: Server) -> None:
    """Nothing is tried on a graph that is not proved, so that no invented value can hold up the others."""
    assert "Loop" in batching_of(bare_server)["collatz"] or "ReduceMax" in batching_of(bare_server)["collatz"]
    assert infer(bare_server, "collatz", n=np.array([27, 1, 7]))[0]["y"].tolist() == [1, 1, 1]


def test_a_folder_without_its_manifest_gets_a_remark(bare_server: Server) -> None:
    """The log and the metadata say so, because its owner may have lost the manifest."""
    remark = httpx.get(f"{bare_server.http}/v2/models/tokenizer-beside").json()["properties"]["remark"]
    assert "tokenizer.json" in remark
    assert bare_server.wait_for("model folder is unusual", model="tokenizer-beside")["why"] == remark


def test_a_policy_that_is_not_understood_keeps_the_model_from_being_served(bare_server: Server) -> None:
    """A misspelt field must not silently count as no declaration."""
    not_served = httpx.get(f"{bare_server.http}/readyz").json()["not_served"]
    assert "policy.toml: Object contains unknown field `row_independent`" in not_served["misspelt/1"]


def test_the_state_folder_declares_for_a_store_that_is_read_only(bare_store: Path, tmp_path: Path) -> None:
    """A policy in the state folder replaces that of the store."""
    for name, independent in {"undeclared": "true", "declared": "false"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "policy.toml").write_text(f"[batching]\nrows_independent = {independent}\n")
    with running_server(bare_store, "--state-dir", str(tmp_path)) as server:
        said = batching_of(server)
        assert said["undeclared"] == "declared independent in policy.toml"
        assert said["declared"] == "declared dependent in policy.toml"
        remembered = {path: path.stat().st_mtime_ns for path in (tmp_path / ".row-independence").iterdir()}
    assert remembered
    with running_server(bare_store, "--state-dir", str(tmp_path)) as server:
        assert batching_of(server) == said
    tried_again = {path: path.stat().st_mtime_ns for path in (tmp_path / ".row-independence").iterdir()}
    assert tried_again == remembered
