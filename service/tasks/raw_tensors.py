"""Tensors in, tensors out, for any ONNX graph; requests share a call if the graph's rows are independent."""

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.tasks.images.image_file import DecodingMemory
from service.tasks.task import DEFAULT_ANSWER, AnswerOptions, Preparation, PrepareOptions, RequestLimits, check_num_rows
from service.tensors import Arrays, TensorSpec

# For rows of dynamic size, the length in the cost table is the size of a row's inputs divided by this.
BYTES_PER_TOKEN = 1024
# Strings of a request that are decoded in the event loop; more are decoded in a thread.
MAX_STRINGS_IN_LOOP = 4_096


class Rows(msgspec.Struct, frozen=True, gc=False):
    """Rows of one request, which are an item of the batcher; rows share a call only if their `batch_key` is equal."""

    arrays: Arrays
    rows: int
    batch_key: Hashable
    length: int  # 1 if all rows have one size
    truncated: bool = False  # tensors are never truncated


class RawTensors:
    """Combines tensors of requests into calls of a bare ONNX graph, and splits its outputs again."""

    name: ClassVar[str] = "tensors"
    accepts: ClassVar[str] = "tensors"
    elements_are_rows: ClassVar[bool] = False
    input_field: ClassVar[str] = ""
    request_options: ClassVar[frozenset[str]] = frozenset()
    labels: Sequence[str] = ()
    explainable: None = None

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        max_rows: int,
        joined: bool,
        optional_inputs: Sequence[TensorSpec] = (),
        equal_sizes: Sequence[Sequence[tuple[str, int]]] = (),
        labels: Sequence[str] = (),
    ) -> None:
        """Set up.

        Args:
            inputs: the graph's inputs that every request must bring.
            outputs: the graph's outputs.
            max_rows: largest number of rows of a call that several requests share.
            joined: whether rows of several requests may share a call. If not, each request is one call.
            optional_inputs: overridable initializers: inputs with a default value in the graph.
            equal_sizes: groups of dimensions, each an input's name and an axis. Rows are independent only if the
                dimensions of a group are equal.
            labels: names of the classes along the last axis of an output; empty where they are not known.
        """
        self.labels = labels
        self.inputs, self.outputs, self.optional_inputs = tuple(inputs), tuple(outputs), tuple(optional_inputs)
        self.joined, self._max_rows = joined, max_rows
        self._equal_sizes = equal_sizes
        self._optional_names = {spec.name for spec in optional_inputs}
        self._sized = any(spec.datatype == "BYTES" or -1 in spec.shape[1:] for spec in self.inputs)

    def max_inputs(self, max_request_rows: int) -> int:
        """Return the limit on rows; 0 where rows may touch each other, or a tensor declares no such dimension."""
        has_rows = all(spec.shape[:1] == (-1,) and not spec.any_rank for spec in (*self.inputs, *self.outputs))
        return max_request_rows if self.joined and has_rows else 0

    def read(self, inputs: Arrays) -> Arrays:
        """Return the tensors: the inputs of a request are all of them."""
        return inputs

    def prepare(
        self,
        inputs: Arrays,
        options: PrepareOptions,
        field: str,
        limits: RequestLimits,
        memory: DecodingMemory | None = None,
    ) -> Preparation:
        """Plan the splitting of tensors into rows; many strings are decoded in a thread."""

        def split() -> list[Rows]:
            rows = self.items(inputs)
            check_num_rows(sum([item.rows for item in rows]), limits.max_request_rows, "rows")
            return rows

        num_strings = sum([array.size for array in inputs.values() if array.dtype.hasobject])
        return Preparation([split], 1, num_strings <= MAX_STRINGS_IN_LOOP, "strings", "decoded")

    def items(self, inputs: Arrays) -> list[Rows]:
        """Turn a request's tensors into items of the batcher.

        A request to a joined model becomes one item, or several if it has more rows than a call takes. A request is
        computed alone if its inputs differ in their first dimension or in others that must be equal, if it has no rows,
        or if it sets an optional input.

        Args:
            inputs: tensors that fit the model's metadata, by name.

        Raises:
            InvalidRequest: a BYTES element is not UTF-8.
        """
        num_bytes, feeds, batch_key = 0, {}, []
        for name, array in inputs.items():
            if array.dtype.hasobject:
                elements = array.ravel().tolist()
                feeds[name] = _of_shape(_to_text(name, elements), array.shape)
                num_bytes += sum(map(len, elements))
            else:
                feeds[name] = array
                num_bytes += array.nbytes
            batch_key.append(array.shape[1:])
        for places in self._equal_sizes:
            if len({inputs[name].shape[axis] for name, axis in places}) > 1:
                return [Rows(feeds, 1, object(), _length(num_bytes))]
        overrides = not self._optional_names.isdisjoint(inputs)
        sizes = {array.shape[:1] for array in feeds.values()} if self.joined else set()
        if overrides or len(sizes) != 1 or not sizes.isdisjoint(((), (0,))):
            return [Rows(feeds, 1, object(), _length(num_bytes))]
        ((num_rows,),) = sizes
        length = _length(num_bytes // num_rows) if self._sized else 1
        if num_rows <= self._max_rows:
            return [Rows(feeds, num_rows, tuple(batch_key), length)]
        return [
            Rows(
                {name: array[first : first + self._max_rows] for name, array in feeds.items()},
                rows=min(self._max_rows, num_rows - first),
                batch_key=tuple(batch_key),
                length=length,
            )
            for first in range(0, num_rows, self._max_rows)
        ]

    def collate(self, items: Sequence[Rows]) -> Arrays:
        """Concatenate the rows of all items into the feeds of one engine call."""
        if len(items) == 1:
            return items[0].arrays
        return {name: np.concatenate([item.arrays[name] for item in items]) for name in items[0].arrays}

    def split_batch(self, outputs: Arrays, items: Sequence[Rows]) -> list[Arrays]:
        """Split the outputs into each item's rows, with strings as BYTES.

        Strings are converted here because this runs in an engine's thread, where it does not block other requests.

        Raises:
            ValueError: the graph did not keep the batch dimension, so the items must be computed one by one.
        """
        if len(items) == 1:
            return [_with_bytes(outputs)]
        num_rows = sum(item.rows for item in items)
        for name, array in outputs.items():
            if array.shape[:1] != (num_rows,):
                raise ValueError(f"output {name!r} has shape {array.shape} for {num_rows} rows")
        outputs = _with_bytes(outputs)
        ends = np.cumsum([item.rows for item in items])
        return [
            {name: array[end - item.rows : end] for name, array in outputs.items()}
            for item, end in zip(items, ends, strict=True)
        ]

    def finish(self, result: Arrays, options: AnswerOptions = DEFAULT_ANSWER) -> Arrays:
        """Return the output tensors of an item: a bare graph has no other answer."""
        return result

    def to_tensors(self, results: Sequence[Arrays]) -> Arrays:
        """Concatenate the results of one request's items."""
        joined = {}
        for name, array in results[0].items():
            whole = array if len(results) == 1 else np.concatenate([result[name] for result in results])
            joined[name] = whole
        return joined


def _length(num_bytes: int) -> int:
    return max(1, -(-num_bytes // BYTES_PER_TOKEN))


def _to_text(name: str, elements: list[bytes]) -> list[str]:
    """Convert BYTES to the strings that ONNX Runtime takes."""
    texts: list[str] = []
    try:
        for element in elements:
            texts.append(element.decode())  # noqa: PERF401, the length tells which element is wrong
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name}[{len(texts)}] is not UTF-8, the only text that ONNX strings carry") from None
    return texts


def _with_bytes(outputs: Arrays) -> Arrays:
    return {name: _to_bytes(array) if array.dtype.hasobject else array for name, array in outputs.items()}


def _to_bytes(array: NDArray[Any]) -> NDArray[Any]:
    """Convert ONNX Runtime's strings to BYTES."""
    return _of_shape([text.encode() for text in array.ravel().tolist()], array.shape)


def _of_shape(elements: list[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    array = np.array(elements, dtype=object)
    return array if len(shape) == 1 else array.reshape(shape)
