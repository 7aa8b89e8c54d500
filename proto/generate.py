"""Generates the Python code beside the .proto files: `python -m proto.generate [--check]`.

`--check` writes nothing and fails if the committed code differs from the code that would be generated.
"""

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent.parent
SOURCES = (
    "proto/inference.proto",
    "proto/model_config.proto",
    "proto/heed.proto",
    "proto/torchserve.proto",
    "proto/onnx_graph.proto",
)


def generate(target: Path) -> list[Path]:
    """Write messages, type stubs and service code below `target`; imports read `from proto import ...`."""
    arguments = [
        "protoc",
        f"-I{ROOT}",
        f"--python_out={target}",
        f"--pyi_out={target}",
        f"--grpc_python_out={target}",
    ]
    if protoc.main([*arguments, *SOURCES]):
        raise SystemExit("protoc failed")
    return sorted((target / "proto").glob("*_pb2*"))


def main() -> None:
    """Generate the code in place, or compare it with `--check`."""
    if "--check" not in sys.argv[1:]:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        fresh = {path.name: path.read_bytes() for path in generate(Path(folder)) if path.is_file()}
    committed = {path.name: path.read_bytes() for path in sorted((ROOT / "proto").glob("*_pb2*"))}
    stale = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
    if stale:
        raise SystemExit(f"not what the .proto files give, run `python -m proto.generate`: {', '.join(stale)}")
    print(f"generated protobuf code is up to date ({len(fresh)} files)")


if __name__ == "__main__":
    main()
