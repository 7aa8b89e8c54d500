"""The limit: ONNX Runtime alone in a loop, on one thread, over sentences that are tokenized and padded beforehand.

Reads lines from standard input; each makes it run all loops once and print a line of JSON: rows per second of wall time
and of CPU time, by model and loop.
"""

import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from load_tests.material import load_sentences

BATCH_SIZES = (8, 16, 32)
VNNI_FLAGS = frozenset({"avx512_vnni", "avx_vnni"})


def feeds(rows: list[list[int]]) -> dict[str, np.ndarray]:
    """Return ids and mask of a batch, padded to the longest, int64 [B, T]."""
    longest = max(len(ids) for ids in rows)
    ids_BT = np.zeros((len(rows), longest), dtype=np.int64)
    mask_BT = np.zeros_like(ids_BT)
    for number, ids in enumerate(rows):
        ids_BT[number, : len(ids)] = ids
        mask_BT[number, : len(ids)] = 1
    return {"input_ids": ids_BT, "attention_mask": mask_BT}


def loops(rows: list[list[int]]) -> dict[str, list[dict[str, np.ndarray]]]:
    """Return every way of batching: one by one, in list order, sorted by length."""
    found = {"one by one": [feeds([ids]) for ids in rows]}
    for order, ordered in (("list order", rows), ("sorted", sorted(rows, key=len))):
        for size in BATCH_SIZES:
            batches = [ordered[first : first + size] for first in range(0, len(rows), size)]
            found[f"{order}, {size}"] = [feeds(batch) for batch in batches]
    return found


def saturates_int8() -> bool:
    """Return whether ONNX Runtime's usual int8 kernels saturate here: x86-64 without VNNI (its issue 12088).

    The server opens its sessions with exact kernels then, which are slower, and so must whatever it is compared with.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return platform.machine() in {"x86_64", "AMD64"} and VNNI_FLAGS.isdisjoint(flags)


def main() -> None:
    """Load the models of the command line, then measure all loops for each line of input."""
    store, names, count = Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3])
    tokenizer = Tokenizer.from_file(str(store / names[0] / "1" / "tokenizer.json"))
    texts = load_sentences().texts
    rows = [tokenizer.encode(texts[number % len(texts)]).ids for number in range(count)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if saturates_int8():
        options.add_session_config_entry("session.x64quantprecision", "1")
    sessions = {name: onnxruntime.InferenceSession(store / name / "1" / "model.onnx", options) for name in names}
    batches = loops(rows)
    print(
        json.dumps({"tokens_per_text": float(np.mean([len(ids) for ids in rows]))}),
        flush=True,
    )
    for _ in sys.stdin:
        measured = {}
        for name, session in sessions.items():
            for loop, members in batches.items():
                session.run(None, members[0])
                wall_s, cpu_s = time.perf_counter(), time.thread_time()
                for batch in members:
                    session.run(None, batch)
                wall_s, cpu_s = time.perf_counter() - wall_s, time.thread_time() - cpu_s
                measured[f"{name}: {loop}"] = {
                    "rows_per_s": count / wall_s,
                    "rows_per_cpu_s": count / cpu_s,
                }
        print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
