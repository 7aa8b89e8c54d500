"""Exact int8 products on CPUs without VNNI.

ONNX Runtime multiplies uint8 activations by int8 weights. Without VNNI instructions its kernels add pairs of products
in 16 bits, and silently saturate a sum beyond 32,767 (its issue 12088). With the session option below it keeps the
weights as uint8 instead and uses kernels that add in 32 bits: the products are then exact.
"""

import platform
from collections.abc import Collection
from pathlib import Path

# Only for CPUs without VNNI: with VNNI the usual kernels are exact and faster.
EXACT_PRODUCTS = ("session.x64quantprecision", "1")
EXACT_CPU_FLAGS = frozenset({"avx512_vnni", "avx_vnni"})
X86_64 = ("x86_64", "AMD64")


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the CPU's instruction sets by their names in the Linux kernel; none if the file is missing."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())


def saturates(flags: Collection[str], machine: str) -> bool:
    """Return whether ONNX Runtime's usual int8 kernels saturate on a CPU of this architecture with these flags.

    An x86-64 CPU with unknown flags counts as one without VNNI: exact but slower is the safe choice.
    """
    return machine in X86_64 and EXACT_CPU_FLAGS.isdisjoint(flags)


def session_entries(flags: Collection[str] | None = None, machine: str | None = None) -> dict[str, str]:
    """Return the configuration entries that every ONNX Runtime session needs for exact int8 products.

    Args:
        flags: the CPU's instruction sets; None: those of this machine.
        machine: the CPU's architecture; None: that of this machine.
    """
    flags = cpu_flags() if flags is None else flags
    return dict([EXACT_PRODUCTS]) if saturates(flags, machine or platform.machine()) else {}
