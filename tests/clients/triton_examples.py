"""Runs the Python examples of Triton's client repository, unchanged, on a server.

`python -m tests.clients.triton_examples FOLDER [--document docs/conformance.md]` runs the files of FOLDER
(src/python/examples of the repository triton-inference-server/client) and writes a table of them. The server has the
models that the examples name: ONNX graphs of a few nodes, made here.
"""

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from onnx import TensorProto, helper
from PIL import Image

from load_tests.page import MarkedPart, command_of, commit
from tests.conftest import ROOT, Server, running_server, write_onnx

# Some examples compare the name of the server with "triton", and read raw answers to typed requests.
OPTIONS = ("--triton-compatible", "on")
EXAMPLES_VARIABLE = "TRITON_EXAMPLES"
TIMEOUT_S = 60
# Addresses of examples that have no option for them.
FIXED_ADDRESSES = {"localhost:8000": "http", "localhost:8001": "grpc"}
CLASSES = 10


class Example(NamedTuple):
    """How an example is run: its arguments, with {http}, {grpc} and {image} for the addresses and a picture."""

    file: str
    arguments: str = "-u {grpc}"

    @property
    def name(self) -> str:
        """The file and those arguments that are not the address."""
        words = self.arguments.replace("-u {grpc}", "").replace("-u {http}", "").replace("{image}", "image.jpg")
        return " ".join([self.file, *words.split()])


EXAMPLES = (
    Example("grpc_client.py"),
    Example("grpc_explicit_byte_content_client.py"),
    Example("grpc_explicit_int8_content_client.py"),
    Example("grpc_explicit_int_content_client.py"),
    Example("simple_grpc_aio_infer_client.py"),
    Example("simple_grpc_async_infer_client.py"),
    Example("simple_grpc_custom_args_client.py"),
    Example("simple_grpc_health_metadata.py"),
    Example("simple_grpc_infer_client.py"),
    Example("simple_grpc_keepalive_client.py"),
    Example("simple_grpc_string_infer_client.py"),
    Example("simple_http_aio_infer_client.py", "-u {http}"),
    Example("simple_http_async_infer_client.py", "-u {http}"),
    Example("simple_http_health_metadata.py", "-u {http}"),
    Example("simple_http_infer_client.py", "-u {http}"),
    Example(
        "simple_http_infer_client.py",
        "-u {http} --request-compression-algorithm gzip --response-compression-algorithm gzip",
    ),
    Example(
        "simple_http_infer_client.py",
        "-u {http} --request-compression-algorithm deflate --response-compression-algorithm deflate",
    ),
    Example("simple_http_string_infer_client.py", "-u {http}"),
    Example("memory_growth_test.py", "-r 20"),
    Example("memory_growth_test.py", "-i gRPC -r 20"),
    Example("image_client.py", "-u {http} -m image_classifier -c 3 -s INCEPTION {image}"),
    Example("image_client.py", "-u {http} -m image_classifier -c 3 -s INCEPTION -a {image}"),
    Example("image_client.py", "-u {grpc} -i grpc -m image_classifier -c 3 -s INCEPTION {image}"),
    Example("image_client.py", "-u {grpc} -i grpc -m image_classifier -c 3 -s INCEPTION --streaming {image}"),
    Example("grpc_image_client.py", "-u {grpc} -m image_classifier -c 3 -s INCEPTION {image}"),
    Example("grpc_image_client.py", "-u {grpc} -m image_classifier -c 3 -s INCEPTION --streaming {image}"),
    Example("ensemble_image_client.py", "-u {http} -m file_classifier -c 3 {image}"),
    Example("ensemble_image_client.py", "-u {grpc} -i grpc -m file_classifier -c 3 {image}"),
)
# Packages that examples import beside tritonclient's.
PACKAGES = ("attrdict",)
NOT_RUN = {
    "reuse_infer_objects_client.py": "shared memory",
    "simple_grpc_cudashm_client.py": "shared memory",
    "simple_grpc_shm_client.py": "shared memory",
    "simple_grpc_shm_string_client.py": "shared memory",
    "simple_http_cudashm_client.py": "shared memory",
    "simple_http_shm_client.py": "shared memory",
    "simple_http_shm_string_client.py": "shared memory",
    "simple_grpc_aio_sequence_stream_infer_client.py": "sequences",
    "simple_grpc_sequence_stream_infer_client.py": "sequences",
    "simple_grpc_sequence_sync_infer_client.py": "sequences",
    "simple_http_sequence_sync_infer_client.py": "sequences",
    "simple_grpc_model_control.py": "model control",
    "simple_http_model_control.py": "model control",
    "simple_grpc_custom_repeat.py": "Triton's repeat backend",
}


def write_models(store: Path) -> None:
    """Write the models that the examples name."""
    for name, element in (
        ("simple", TensorProto.INT32),
        ("simple_int8", TensorProto.INT8),
        ("simple_string", TensorProto.STRING),
    ):
        shape = (element, ["rows", 16])
        outputs = {"OUTPUT0": shape, "OUTPUT1": shape}
        write_onnx(store / name / "1", _sum_and_difference(element), {"INPUT0": shape, "INPUT1": shape}, outputs)
    for name, element in (("simple_identity", TensorProto.STRING), ("custom_identity_int32", TensorProto.INT32)):
        shape = (element, ["rows", 16])
        identity = [helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])]
        write_onnx(store / name / "1", identity, {"INPUT0": shape}, {"OUTPUT0": shape})
    write_onnx(
        store / "densenet_onnx/1",
        [helper.make_node("ReduceMean", ["data_0"], ["fc6_1"], axes=[1, 2], keepdims=0)],
        {"data_0": (TensorProto.FLOAT, [3, 224, 224])},
        {"fc6_1": (TensorProto.FLOAT, [3])},
    )
    classes = helper.make_node("Constant", [], ["classes"], value_floats=[float(number) for number in range(CLASSES)])
    scores = {"scores": (TensorProto.FLOAT, ["rows", CLASSES])}
    filters = helper.make_tensor("filters", TensorProto.FLOAT, [CLASSES, 3, 1, 1], [0.1] * 3 * CLASSES)
    write_onnx(
        store / "image_classifier/1",
        [
            classes,
            helper.make_node("Constant", [], ["filters"], value=filters),
            helper.make_node("Conv", ["data", "filters"], ["features"]),
            helper.make_node("ReduceMean", ["features"], ["means"], axes=[2, 3], keepdims=0),
            helper.make_node("Add", ["means", "classes"], ["scores"]),
        ],
        {"data": (TensorProto.FLOAT, ["rows", 3, 32, 32])},
        scores,
    )
    (store / "image_classifier/1/labels.txt").write_text("".join(f"class {number}\n" for number in range(CLASSES)))
    shutil.copytree(ROOT / "model_store/cifar10-vit", store / "file_classifier")


def _sum_and_difference(element: int) -> list[Any]:
    """Make nodes that add and subtract two tensors of integers, which may be written as numbers of any type."""
    casts = [
        helper.make_node("Cast", [f"INPUT{number}"], [f"integer{number}"], to=TensorProto.INT32) for number in range(2)
    ]
    computed = [
        helper.make_node("Add", ["integer0", "integer1"], ["sum"]),
        helper.make_node("Sub", ["integer0", "integer1"], ["difference"]),
    ]
    back = [
        helper.make_node("Cast", ["sum"], ["OUTPUT0"], to=element),
        helper.make_node("Cast", ["difference"], ["OUTPUT1"], to=element),
    ]
    return [*casts, *computed, *back]


def run_example(example: Example, folder: Path, server: Server, scratch: Path) -> str | None:
    """Run one example; return its output if it failed, None if it passed.

    Args:
        example: which file, and how.
        folder: the repository's examples.
        server: a server with the models of `write_models`, started with `OPTIONS`.
        scratch: an empty folder or one that earlier examples used.
    """
    program, image = scratch / example.file, scratch / "image.jpg"
    source = (folder / example.file).read_text()
    addresses = {"http": server.http.removeprefix("http://"), "grpc": server.grpc}
    for fixed, protocol in FIXED_ADDRESSES.items():
        if "--url" not in source:
            source = source.replace(fixed, addresses[protocol])
    program.write_text(source)
    Image.new("RGB", (40, 30), "teal").save(image)
    packages = scratch / "packages"
    for package in PACKAGES:
        if package in source and not (packages / package).exists():
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages), package]
            subprocess.run(install, check=True)
    arguments = example.arguments.format(image=image, **addresses).split()
    run = subprocess.run(
        [sys.executable, str(program), *arguments],
        cwd=scratch,
        env=os.environ | {"PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    output = run.stdout + run.stderr
    # Some examples end with status 0 after they have printed a failure, or in silence after an unexpected answer.
    failed = run.returncode != 0 or "FAILED" in output or "error:" in output or "failed" in output
    failed |= "PASS" in source and "PASS" not in output
    return output if failed else None


def table(outcomes: dict[str, str], version: str) -> str:
    """Make the Markdown table of all examples."""
    rows = [f"| `{name}` | {outcome} |" for name, outcome in sorted(outcomes.items())]
    rows += [f"| `{file}` | not offered: {why} |" for file, why in sorted(NOT_RUN.items())]
    head = f"`{command_of('tests.clients.triton_examples')}`, tritonclient {version}, commit {commit()}."
    return "\n".join([head, "", "| example | result |", "| --- | --- |", *rows])


def main() -> int:
    """Run all examples; the exit status is non-zero if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients.triton_examples", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="src/python/examples of Triton's client repository")
    parser.add_argument("--document", type=Path, metavar="FILE", help="page whose table is rewritten")
    options = parser.parse_args()
    part = None if options.document is None else MarkedPart.of(options.document, "triton-examples")
    outcomes = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_models(Path(scratch) / "store")
        with running_server(Path(scratch) / "store", *OPTIONS) as server:
            for number, example in enumerate(EXAMPLES, 1):
                output = run_example(example, options.folder, server, Path(scratch))
                outcomes[example.name] = "passed" if output is None else "FAILED"
                print(f"{number}/{len(EXAMPLES)} {example.name}: {outcomes[example.name]}", flush=True)
                if output is not None:
                    print(output)
    if part is not None:
        part.replace(table(outcomes, importlib.metadata.version("tritonclient")))
    return int("FAILED" in outcomes.values())


if __name__ == "__main__":
    sys.exit(main())
