"""Operators of neural networks: convolution, pooling, normalisation, recurrence, attention."""

from service.models.row_independence.operation import Operation, Rule, positive_axis
from service.models.row_independence.operators.elementwise import broadcast_values
from service.models.row_independence.sizes import ONE, Size, derived
from service.models.row_independence.values import NotProved, Shape, Value


def images(operation: Operation, index: int = 0) -> Value:
    """Return an input whose first axis holds the rows, or that has no rows.

    Raises:
        NotProved: the rows lie along another axis, or the rank is not known.
    """
    value = operation.input(index).without_content()
    operation.shape(index)
    if value.axis not in (None, 0):
        raise NotProved("takes the batch axis for channels or space")
    return value


def _window(operation: Operation, size: Size, axis: int, kernel: int | None) -> Size:
    """Compute a dimension after a window was moved along it."""
    pads = operation.ints_attribute("pads") or []
    strides, dilations = operation.ints_attribute("strides") or [], operation.ints_attribute("dilations") or []
    stride = strides[axis] if strides else 1
    dilation = dilations[axis] if dilations else 1
    auto, ceil = operation.text_attribute("auto_pad", "NOTSET"), operation.int_attribute("ceil_mode", 0)
    padding = pads[axis] + pads[axis + len(pads) // 2] if pads else 0
    settings = f"window({size},{kernel},{padding},{stride},{dilation},{auto},{ceil})"
    if kernel is None:
        return operation.fresh()
    if size.known is None or ceil:
        if auto == "NOTSET" and stride == 1 and padding == dilation * (kernel - 1):
            return size
        return derived(settings, size)
    if auto in {"SAME_UPPER", "SAME_LOWER"}:
        return Size(-(-size.known // stride))
    return Size(max(0, (size.known + padding - dilation * (kernel - 1) - 1) // stride + 1))


def _convolved(operation: Operation, value: Value, weights: int) -> list[Value]:
    if value.shape is None:
        return [Value(None)]
    kernel_shape = operation.input(weights).shape
    if kernel_shape is None:
        return [Value((value.shape[0], *operation.fresh_shape(len(value.shape) - 1)), value.axis)]
    sizes = [_window(operation, size, axis, kernel_shape[axis + 2].known) for axis, size in enumerate(value.shape[2:])]
    return [Value((value.shape[0], kernel_shape[0], *sizes), value.axis)]


def convolve(operation: Operation) -> list[Value]:
    """Trace Conv and ConvInteger, with weights that all rows share."""
    operation.fixed(*range(1, len(operation.inputs)))
    return _convolved(operation, images(operation), 1)


def qlinear_convolve(operation: Operation) -> list[Value]:
    """Trace QLinearConv, with weights that all rows share."""
    operation.fixed(*range(1, len(operation.inputs)))
    return _convolved(operation, images(operation), 3)


def deform_convolve(operation: Operation) -> list[Value]:
    """Trace DeformConv: each row has its own offsets."""
    operation.fixed(1, 3)
    value = images(operation)
    for index in (2, 4):
        other = operation.optional(index)
        if other is not None and (other.shape is None or value.shape is None or value.axis != other.axis):
            raise NotProved("shifts rows by a tensor without rows")
        if other is not None and (other.shape or ())[0] != (value.shape or ())[0]:
            raise NotProved("shifts rows by another number of rows")
    return _convolved(operation, value, 1)


def transposed_convolve(operation: Operation) -> list[Value]:
    """Trace ConvTranspose."""
    operation.fixed(*range(1, len(operation.inputs)))
    value, shape = images(operation), operation.shape(0)
    kernel = operation.input(1).shape
    channels = operation.fresh()
    if kernel is not None and kernel[1].known is not None:
        channels = Size(kernel[1].known * operation.int_attribute("group", 1))
    simple = (
        "output_shape" not in operation.node.attributes and operation.text_attribute("auto_pad", "NOTSET") == "NOTSET"
    )
    sizes = [
        _unwound(operation, size, axis, kernel[axis + 2].known if kernel is not None and simple else None)
        for axis, size in enumerate(shape[2:])
    ]
    return [Value((shape[0], channels, *sizes), value.axis)]


def _unwound(operation: Operation, size: Size, axis: int, kernel: int | None) -> Size:
    if kernel is None or size.known is None:
        return operation.fresh()
    pads, more = operation.ints_attribute("pads") or [], operation.ints_attribute("output_padding") or []
    strides, dilations = operation.ints_attribute("strides") or [], operation.ints_attribute("dilations") or []
    whole = (strides[axis] if strides else 1) * (size.known - 1) + (more[axis] if more else 0)
    whole += (kernel - 1) * (dilations[axis] if dilations else 1) + 1
    return Size(whole - (pads[axis] + pads[axis + len(pads) // 2] if pads else 0))


def pool(operation: Operation) -> list[Value]:
    """Trace pooling: the maximum or the mean of each window."""
    operation.fixed(*range(1, len(operation.inputs)))
    value, shape = images(operation), operation.shape(0)
    kernel = operation.ints_attribute("kernel_shape") or []
    if len([name for name in operation.node.outputs if name]) > 1 and value.axis is not None:
        raise NotProved("numbers elements across the batch")
    sizes = [_window(operation, size, axis, kernel[axis]) for axis, size in enumerate(shape[2:])]
    return [Value((*shape[:2], *sizes), value.axis)]


def global_pool(operation: Operation) -> list[Value]:
    """Trace global pooling: one number for each channel."""
    operation.fixed(*range(1, len(operation.inputs)))
    value, shape = images(operation), operation.shape(0)
    return [Value((*shape[:2], *[ONE] * (len(shape) - 2)), value.axis)]


def by_row(operation: Operation) -> list[Value]:
    """Trace an operator that keeps the shape and computes each row independently, with shared settings."""
    operation.fixed(*range(1, len(operation.inputs)))
    return [images(operation)]


def batch_normalization(operation: Operation) -> list[Value]:
    """Trace BatchNormalization, which must use statistics of the training and not of the batch."""
    outputs = len([name for name in operation.node.outputs if name])
    if operation.version < 7 and not operation.int_attribute("is_test", 0):
        raise NotProved("normalises by the mean of the batch")
    if operation.int_attribute("training_mode", 0) or outputs > 1:
        raise NotProved("normalises by the mean of the batch")
    return by_row(operation)


def dropout(operation: Operation) -> list[Value]:
    """Trace Dropout, which must do nothing at inference."""
    if operation.version < 7 and not operation.int_attribute("is_test", 0):
        raise NotProved("may drop elements at random")
    training = operation.optional(2)
    if training is not None and (training.content is None or training.content.reshape(-1)[0] is not False):
        raise NotProved("may drop elements at random")
    value = operation.input(0)
    return [value, Value(value.shape, value.axis)]


def layer_normalization(operation: Operation) -> list[Value]:
    """Trace LayerNormalization and RMSNormalization over an axis and those after it."""
    operation.fixed(*range(1, len(operation.inputs)))
    value, shape = operation.input(0).without_content(), operation.shape(0)
    axis = positive_axis(operation.int_attribute("axis", -1), len(shape))
    if value.axis is not None and value.axis >= axis:
        raise NotProved("normalises over the batch axis")
    for other in operation.given()[1:]:
        if other.shape is None or any(size.known != 1 for size in other.shape[: -(len(shape) - axis)]):
            raise NotProved("has a scale of more dimensions than it normalises")
    statistics = Value((*shape[:axis], *[ONE] * (len(shape) - axis)), value.axis)
    return [value, statistics, statistics]


def recurrent(operation: Operation) -> list[Value]:
    """Trace LSTM, GRU and RNN: the first axis is time, the second the batch."""
    if operation.int_attribute("layout", 0):
        raise NotProved("has the batch first, which is not supported")
    operation.fixed(1, 2, 3, 7)
    value, shape = operation.input(0), operation.shape(0)
    if value.axis != 1:
        raise NotProved("takes the batch axis for time or features")
    _same_rows(operation, 4, 0, shape[1])
    for index in (5, 6):
        _same_rows(operation, index, 1, shape[1])
    directions = Size(2 if operation.text_attribute("direction", "forward") == "bidirectional" else 1)
    hidden = Size(operation.int_attribute("hidden_size", 0))
    last = Value((directions, shape[1], hidden), 1)
    return [Value((shape[0], directions, shape[1], hidden), 2), last, last]


def _same_rows(operation: Operation, index: int, axis: int, rows: Size) -> None:
    value = operation.optional(index)
    if value is None:
        return
    if value.axis != axis or value.shape is None or value.shape[axis] != rows:
        raise NotProved(f"has an input {index} that does not belong to the rows")


def same_rows(operation: Operation, indices: tuple[int, ...], rows: Size) -> None:
    """Require that the first axis of some inputs holds the same rows.

    Raises:
        NotProved: one does not.
    """
    for index in indices:
        _same_rows(operation, index, 0, rows)


def attention(operation: Operation) -> list[Value]:
    """Trace Attention: each row has its own queries, keys and values; the mask may be shared."""
    query, shape = images(operation), operation.shape(0)
    if query.axis is None:
        raise NotProved("has queries without rows")
    same_rows(operation, (1, 2, 4, 5, 6), shape[0])
    mask = operation.optional(3)
    if mask is not None:
        scores = Value((shape[0], *operation.fresh_shape(3)), 0)
        if broadcast_values([scores, mask]).rank != 4:
            raise NotProved("has a mask of too many dimensions")
    value = operation.shape(2)
    if len(shape) == 3:
        output: Shape = (shape[0], shape[1], operation.fresh())
    else:
        output = (*shape[:3], value[3])
    cache = Value((shape[0], *operation.fresh_shape(3)), 0)
    return [Value(output, 0), cache, cache, cache]


def linear_attention(operation: Operation) -> list[Value]:
    """Trace LinearAttention: each row carries a state through its own steps."""
    value, shape = images(operation), operation.shape(0)
    if value.axis is None:
        raise NotProved("has queries without rows")
    same_rows(operation, tuple(range(1, len(operation.inputs))), shape[0])
    return [Value((*shape[:2], operation.fresh()), 0), Value((shape[0], *operation.fresh_shape(3)), 0)]


def depth_to_space(operation: Operation) -> list[Value]:
    """Trace DepthToSpace and SpaceToDepth."""
    value, shape = images(operation), operation.shape(0)
    return [Value((shape[0], *operation.fresh_shape(3)), value.axis)]


RULES: dict[str, Rule] = {
    "Attention": attention,
    "AveragePool": pool,
    "BatchNormalization": batch_normalization,
    "Conv": convolve,
    "ConvInteger": convolve,
    "ConvTranspose": transposed_convolve,
    "DeformConv": deform_convolve,
    "DepthToSpace": depth_to_space,
    "Dropout": dropout,
    "GRU": recurrent,
    "GlobalAveragePool": global_pool,
    "GlobalLpPool": global_pool,
    "GlobalMaxPool": global_pool,
    "GroupNormalization": by_row,
    "InstanceNormalization": by_row,
    "LRN": by_row,
    "LSTM": recurrent,
    "LayerNormalization": layer_normalization,
    "LinearAttention": linear_attention,
    "LpPool": pool,
    "MaxPool": pool,
    "QLinearConv": qlinear_convolve,
    "RMSNormalization": layer_normalization,
    "RNN": recurrent,
    "SpaceToDepth": depth_to_space,
}
