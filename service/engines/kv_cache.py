"""Keys and values of running sentences, in the host's memory or on the device.

A tensor has a row for each hypothesis or sentence, and the rows in use are the first ones. Rows move when a beam search
continues another hypothesis or a sentence leaves.

Shapes: R rows, N rows of an encoder call, H heads, L places, S source tokens, K width of a head.
"""

import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.engines.device import Device, providers
from service.engines.host import EngineHost
from service.engines.onnx_builder import FLOAT, FLOAT16, gather_graph
from service.engines.onnx_session import run_binding, session_options

Rows = slice | list[int]


class HostKvCache:
    """Keys and values in the host's memory: a tensor [R, H, L, K] for each name."""

    active = 0  # index of the memory that the next step reads; there is only one here

    def __init__(self, names: Sequence[str], shape: tuple[int, int, int, int], dtype: np.dtype[Any]) -> None:
        self._names = names
        self._arrays = [_lazy_zeros(shape, dtype) for _ in names]
        self.length = shape[2]

    def write_rows(self, row: int, parts_NHSK: Sequence[Any], numbers: Sequence[int]) -> None:
        """Write rows of an encoder's outputs behind the rows in use.

        The mask hides the places behind a row's own tokens.

        Args:
            row: the first row to write.
            parts_NHSK: outputs of the encoder, one for each tensor.
            numbers: the rows of `parts_NHSK` to write.
        """
        for array_RHLK, part_NHSK in zip(self._arrays, parts_NHSK, strict=True):
            length = min(self.length, part_NHSK.shape[2])
            array_RHLK[row : row + len(numbers), :, :length] = part_NHSK[numbers, :, :length]

    def copy_rows(self, targets: Rows, sources: Rows, length: int) -> None:
        """Copy the first `length` places of the source rows to the target rows; they may overlap."""
        for array_RHLK in self._arrays:
            # Indexing by a list copies all source rows before any is written, so rows may swap places.
            array_RHLK[targets, :, :length] = array_RHLK[sources, :, :length]

    def resize(self, length: int, rows: int) -> None:
        """Change the number of places L to `length`; the first `rows` rows keep the places that both sizes have."""
        before, kept = self._arrays, min(length, self.length)
        R, H, _, K = before[0].shape
        self._arrays = [_lazy_zeros((R, H, length, K), before[0].dtype) for _ in before]
        for after_RHLK, before_RHLK in zip(self._arrays, before, strict=True):
            after_RHLK[:rows, :, :kept] = before_RHLK[:rows, :, :kept]
        self.length = length

    def flush(self, rows: int) -> None:
        """Apply the pending row moves; here none are pending, because every call applies its own."""

    def bind(self, binding: Any, rows: int, *, new: bool) -> None:
        """Bind the first `rows` rows as inputs of a step; with `new`, the same memory as its outputs `new_<name>`."""
        for name, array_RHLK in zip(self._names, self._arrays, strict=True):
            bound = "cpu", 0, array_RHLK.dtype.type, array_RHLK[:rows].shape, array_RHLK.ctypes.data
            binding.bind_input(name, *bound)
            if new:
                binding.bind_output(f"new_{name}", *bound)


class DeviceGathers:
    """Graphs that copy rows of keys and values within the device's memory."""

    def __init__(self, count: int, dtype: np.dtype[Any], host: EngineHost) -> None:
        """Load the graphs.

        Args:
            count: tensors that each copy has.
            dtype: element type of the tensors, float32 or float16.
            host: device of the tensors.
        """
        self._dtype, self._host = dtype, host
        element_type = {"float32": FLOAT, "float16": FLOAT16}[dtype.name]

        def opened(second_axis: int | None) -> Any:
            graph = gather_graph(count, element_type, 4, second_axis)
            return onnxruntime.InferenceSession(graph, session_options(1), providers=providers(host.device))

        with host.shared_use():
            self._rows, self._rows_and_places = opened(None), opened(2)

    def copy(
        self,
        sources: Sequence[Any],
        rows: NDArray[np.int64],
        targets: Sequence[Any],
        shape: tuple[int, ...],
        first: int = 0,
    ) -> None:
        """Copy rows of the source tensors to the target tensors.

        A target with more places than its source repeats the source's last place there: padding, which only
        has to be finite.

        Args:
            sources: tensors [N, H, S, K].
            rows: the source rows to copy.
            targets: tensors [R, H, L, K].
            shape: shape of a target row, [H, L, K].
            first: the first target row to write.

        Raises:
            EngineError: the device cannot compute the copy.
        """
        (H, L, K), S = shape, sources[0].shape()[2]
        session = self._rows if S == L else self._rows_and_places
        binding = session.io_binding()
        binding.bind_cpu_input("rows", rows)
        if S != L:
            binding.bind_cpu_input("places", np.minimum(np.arange(L, dtype=np.int64), S - 1))
        offset = first * H * L * K * self._dtype.itemsize
        for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
            binding.bind_ortvalue_input(f"x_{number}", source)
            memory = self._host.device, 0, self._dtype.type, (len(rows), *shape), target.data_ptr() + offset
            binding.bind_output(f"y_{number}", *memory)
        run_binding(session, binding, self._host)


class DeviceKvCache:
    """Keys and values in the device's memory, with the methods of `HostKvCache`; nothing passes through the host.

    Row moves are recorded and applied together before the next step: a Gather on the device copies the rows from one
    memory into a second one, which the next step then reads. Rows of the encoder are gathered in the same way, out of
    the memory that the encoder has written.
    """

    def __init__(
        self,
        names: Sequence[str],
        shape: tuple[int, int, int, int],
        dtype: np.dtype[Any],
        device: Device,
        gathers: DeviceGathers,
        *,
        zeros: bool,
    ) -> None:
        """Allocate the tensors.

        Args:
            names: the decoder step's inputs.
            shape: shape of each tensor, [R, H, L, K].
            dtype: their element type.
            device: ONNX Runtime's name of the tensors' device.
            gathers: graphs for as many tensors as there are names.
            zeros: fill the tensors with zeros; else their content is undefined.
        """
        self._names, self._shape, self._dtype, self._device = names, shape, dtype, device
        self._gathers, self._zeros = gathers, zeros
        self._memories: list[list[Any]] = [self._allocate()]  # the second one is allocated when rows first move
        self.active = 0  # index of the memory that the next step reads
        self._order_R = np.arange(shape[0], dtype=np.int64)  # for each row, the row of the active memory to copy

    def _allocate(self) -> list[Any]:
        if self._zeros:
            zeros = (np.zeros(self._shape, self._dtype) for _ in self._names)
            return [onnxruntime.OrtValue.ortvalue_from_numpy(each, self._device) for each in zeros]
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        return [make(list(self._shape), self._dtype.type, self._device) for _ in self._names]

    @property
    def length(self) -> int:
        """Places of a row, L."""
        return self._shape[2]

    def write_rows(self, row: int, parts_NHSK: Sequence[Any], numbers: Sequence[int]) -> None:
        """Write rows of an encoder's outputs behind the rows in use; see `HostKvCache.write_rows`.

        Raises:
            EngineError: the device cannot compute the copy.
        """
        self._apply_moves(row)  # the moves must not displace the new rows
        chosen = np.array(numbers, dtype=np.int64)
        self._gathers.copy(parts_NHSK, chosen, self._memories[self.active], self._shape[1:], row)

    def copy_rows(self, targets: Rows, sources: Rows, length: int) -> None:
        """Record that whole source rows move to the target rows; see `HostKvCache.copy_rows`."""
        self._order_R[targets] = self._order_R[sources].copy()

    def resize(self, length: int, rows: int) -> None:
        """Change the number of places L to `length`; see `HostKvCache.resize`.

        Raises:
            EngineError: the device cannot compute the copy.
        """
        (R, H, _, K), before, order_R = self._shape, self._memories[self.active], self._order_R[:rows].copy()
        self._shape = (R, H, length, K)
        self._memories, self.active = [self._allocate()], 0
        self._order_R[:] = np.arange(R)
        if rows:
            self._gathers.copy(before, order_R, self._memories[0], self._shape[1:])

    def flush(self, rows: int) -> None:
        """Apply the pending row moves, so that the first `rows` rows can be bound.

        Raises:
            EngineError: the device cannot compute the copy.
        """
        self._apply_moves(rows)

    def bind(self, binding: Any, rows: int, *, new: bool) -> None:
        """Bind the first `rows` rows as inputs of a step; see `HostKvCache.bind`."""
        for name, value in zip(self._names, self._memories[self.active], strict=True):
            bound = self._device, 0, self._dtype.type, (rows, *self._shape[1:]), value.data_ptr()
            binding.bind_input(name, *bound)
            if new:
                binding.bind_output(f"new_{name}", *bound)

    def _apply_moves(self, rows: int) -> None:
        order_R = self._order_R[:rows].copy()
        self._order_R[:] = np.arange(len(self._order_R))
        if (order_R == self._order_R[:rows]).all():
            return
        if len(self._memories) == 1:
            self._memories.append(self._allocate())
        before, self.active = self._memories[self.active], 1 - self.active
        self._gathers.copy(before, order_R, self._memories[self.active], self._shape[1:])


KvCache = HostKvCache | DeviceKvCache


def _lazy_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return zeros in freshly mapped memory, which takes neither memory nor time until it is written to.

    A row thus costs only what its tokens need. `np.zeros` guarantees that only for memory that is new to the process:
    it fills reused memory with zeros at once, which for the cache of a running batch took 10 to 140 ms.
    """
    count = math.prod(shape)
    memory = mmap.mmap(-1, max(1, count * dtype.itemsize))  # mmap rejects length 0
    return np.frombuffer(memory, dtype, count).reshape(shape)
