"""Matrix products, which keep rows apart if the batch axis is not contracted."""

from service.models.row_independence.operation import Operation, Rule, positive_axis
from service.models.row_independence.operators.elementwise import broadcast_values
from service.models.row_independence.sizes import ONE, Size, broadcast
from service.models.row_independence.values import NotProved, Value


def multiplied(left: Value, right: Value) -> Value:
    """Compute the product of two stacks of matrices.

    Raises:
        NotProved: it sums over rows, or combines each row with each.
    """
    if left.shape is None or right.shape is None:
        if left.axis is None and right.axis is None:
            return Value(None)
        raise NotProved("multiplies rows with a tensor of unknown rank")
    first, second = left.shape, right.shape
    if not first or not second:
        raise NotProved("multiplies a tensor without dimensions")
    if left.axis == len(first) - 1 or (right.axis is not None and right.axis == max(len(second) - 2, 0)):
        raise NotProved("sums over the batch axis")
    left_stack = Value(first[:-2], left.axis if left.axis is not None and left.axis < len(first) - 2 else None)
    right_stack = Value(second[:-2], right.axis if right.axis is not None and right.axis < len(second) - 2 else None)
    stack = broadcast_values([left_stack, right_stack])
    sizes, place = list(stack.shape or ()), stack.axis
    of_rows = len(first) >= 2 and left.axis == len(first) - 2
    of_columns = len(second) >= 2 and right.axis == len(second) - 1
    if of_rows + of_columns + (place is not None) > 1:
        raise NotProved("multiplies each row with all others")
    if of_rows:
        place = len(sizes)
    if len(first) >= 2:
        sizes.append(first[-2])
    if of_columns:
        place = len(sizes)
    if len(second) >= 2:
        sizes.append(second[-1])
    return Value(tuple(sizes), place)


def matmul(operation: Operation) -> list[Value]:
    """Trace MatMul and its quantized forms; further inputs are scales and zero points that all rows share."""
    operation.fixed(*range(2, len(operation.inputs)))
    return [multiplied(operation.input(0).without_content(), operation.input(1).without_content())]


def qlinear_matmul(operation: Operation) -> list[Value]:
    """Trace QLinearMatMul: each of the two tensors has a scale and a zero point."""
    operation.fixed(1, 2, 4, 5, 6, 7)
    return [multiplied(operation.input(0), operation.input(3))]


def _swapped(value: Value) -> Value:
    if value.shape is None:
        return value
    if len(value.shape) < 2:
        raise NotProved("transposes a vector")
    place = value.axis
    if place is not None and place >= len(value.shape) - 2:
        place = 2 * len(value.shape) - 3 - place
    return Value((*value.shape[:-2], value.shape[-1], value.shape[-2]), place)


def gemm(operation: Operation) -> list[Value]:
    """Trace Gemm: a product and a sum."""
    left, right = operation.input(0).without_content(), operation.input(1).without_content()
    left = _swapped(left) if operation.int_attribute("transA", 0) else left
    right = _swapped(right) if operation.int_attribute("transB", 0) else right
    whole = multiplied(left, right)
    bias = operation.optional(2)
    return [whole if bias is None else broadcast_values([whole, bias.without_content()])]


def fused_matmul(operation: Operation) -> list[Value]:
    """Trace com.microsoft.FusedMatMul: a product with transposed inputs."""
    if operation.int_attribute("transBatchA", 0) or operation.int_attribute("transBatchB", 0):
        raise NotProved("transposes the batch")
    left, right = operation.input(0).without_content(), operation.input(1).without_content()
    left = _swapped(left) if operation.int_attribute("transA", 0) else left
    right = _swapped(right) if operation.int_attribute("transB", 0) else right
    return [multiplied(left, right)]


_ELLIPSIS = "..."


def _spelled_out(term: str, count: int) -> str:
    """Expand an ellipsis in a term of an einsum to digits, aligned at the last one."""
    return term.replace(_ELLIPSIS, "".join(str(number) for number in range(count - 1, -1, -1)))


def einsum(operation: Operation) -> list[Value]:
    """Trace Einsum: the batch needs a label of its own, which the result must keep."""
    values = [value.without_content() for value in operation.given()]
    terms, arrow, result = operation.text_attribute("equation", "").replace(" ", "").partition("->")
    labels = terms.split(",")
    if not arrow or len(labels) != len(values):
        raise NotProved("has an equation that is not supported")
    spare = [(value.rank or 0) - len(term) + len(_ELLIPSIS) for value, term in zip(values, labels, strict=True)]
    of_ellipses = [count for count, term in zip(spare, labels, strict=True) if _ELLIPSIS in term]
    result = _spelled_out(result, max(of_ellipses, default=0))
    labels = [_spelled_out(term, count) for count, term in zip(spare, labels, strict=True)]
    sizes: dict[str, Size] = {}
    batch: set[str] = set()
    for value, term in zip(values, labels, strict=True):
        if value.shape is None or len(value.shape) != len(term):
            raise NotProved("has an equation of another rank than its input")
        if value.axis is not None:
            batch.add(term[value.axis])
    if len(batch) > 1:
        raise NotProved("multiplies each row with all others")
    for value, term in zip(values, labels, strict=True):
        for axis, label in enumerate(term):
            size = (value.shape or ())[axis]
            if label in batch and (axis != value.axis or term.count(label) > 1):
                raise NotProved("multiplies rows with a dimension that is no batch")
            if label in batch and sizes.setdefault(label, size) != size:
                raise NotProved("multiplies different numbers of rows")
            sizes[label] = size if label in batch else broadcast(sizes.get(label, ONE), size)
    if batch and result.count(next(iter(batch))) != 1:
        raise NotProved("sums over the batch axis")
    return [Value(tuple(sizes[label] for label in result), result.index(batch.pop()) if batch else None)]


def det(operation: Operation) -> list[Value]:
    """Trace Det: one number for each matrix."""
    value, shape = operation.input(0), operation.shape(0)
    if value.axis is not None and value.axis >= len(shape) - 2:
        raise NotProved("takes rows for a dimension of its matrix")
    return [Value(shape[:-2], value.axis)]


def trilu(operation: Operation) -> list[Value]:
    """Trace Trilu: a triangle of each matrix."""
    value, shape = operation.input(0).without_content(), operation.shape(0)
    operation.fixed(1)
    if value.axis is not None and value.axis >= len(shape) - 2:
        raise NotProved("takes rows for a dimension of its matrix")
    return [value]


def quantize(operation: Operation) -> list[Value]:
    """Trace quantization and its inverse, with a scale that all rows share."""
    operation.fixed(1, 2)
    value = operation.input(0).without_content()
    scale = operation.input(1).shape
    if value.axis is not None and (scale is None or any(size.known != 1 for size in scale)):
        if scale is None or len(scale) != 1 or operation.int_attribute("block_size", 0):
            raise NotProved("has blocks of scales")
        if positive_axis(operation.int_attribute("axis", 1), len(operation.shape(0))) == value.axis:
            raise NotProved("has a scale for each row of one batch size")
    return [value]


RULES: dict[str, Rule] = {
    "DequantizeLinear": quantize,
    "Det": det,
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": matmul,
    "MatMulInteger": matmul,
    "QLinearMatMul": qlinear_matmul,
    "QuantizeLinear": quantize,
    "Trilu": trilu,
}
