"""Exact int8 products on CPUs without VNNI.

ONNX Runtime multiplies uint8 activations by int8 weights. Without VNNI instructions its kernels add pairs of products
in 16 bits, and a sum beyond 32,767 is cut off without a word (its issue 12088). With the session option below it keeps
the weights as uint8 instead and uses kernels that add in 32 bits: the same products, exactly.
"""

import platform
from collections.abc import Collection
from pathlib import Path

# ONNX Runtime would also obey it on CPUs with VNNI, where its usual kernels are exact and faster.
EXACT_PRODUCTS = ("session.x64quantprecision", "1")
EXACT_CPU_FLAGS = frozenset({"avx512_vnni", "avx_vnni"})
X86_64 = ("x86_64", "AMD64")


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets of this machine's CPU by the names of the Linux kernel; none where the file is missing."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())


def saturates(flags: Collection[str], machine: str) -> bool:
    """Whether ONNX Runtime's usual int8 kernels would saturate on a CPU of this architecture with these flags.

    A CPU of x86-64 whose flags are unknown counts as one without VNNI: exact and slower is the safe side.
    """
    return machine in X86_64 and EXACT_CPU_FLAGS.isdisjoint(flags)


def session_entries(flags: Collection[str] | None = None, machine: str | None = None) -> dict[str, str]:
    """Configuration entries that every ONNX Runtime session needs, so that int8 products are exact.

    Args:
        flags: instruction sets of the CPU; None: of this machine.
        machine: its architecture; None: of this machine.
    """
    flags = cpu_flags() if flags is None else flags
    return dict([EXACT_PRODUCTS]) if saturates(flags, machine or platform.machine()) else {}
