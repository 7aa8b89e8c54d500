"""Operators of com.microsoft, which ONNX Runtime's optimizers and quantizers write."""

from service.models.row_independence.operation import Operation, Rule
from service.models.row_independence.operators.elementwise import broadcast_values, unary
from service.models.row_independence.operators.networks import (
    convolve,
    global_pool,
    images,
    layer_normalization,
    same_rows,
)
from service.models.row_independence.operators.products import fused_matmul, gemm, matmul, quantize
from service.models.row_independence.operators.reductions import softmax
from service.models.row_independence.sizes import ONE, Size
from service.models.row_independence.values import NotProved, Value


def biased(operation: Operation) -> list[Value]:
    """Trace an elementwise function of a sum."""
    return [broadcast_values([value.without_content() for value in operation.given()])]


def skip_layer_normalization(operation: Operation) -> list[Value]:
    """Trace SkipLayerNormalization: the sum of two tensors, normalised over the last axis."""
    shape = operation.shape(0)
    operation.fixed(*range(2, len(operation.inputs)))
    whole = broadcast_values([operation.input(0).without_content(), operation.input(1).without_content()])
    if whole.axis is None or whole.axis == len(shape) - 1 or whole.rank != len(shape):
        raise NotProved("normalises over the batch axis")
    statistics = Value((*shape[:-1], Size(1)), whole.axis)
    return [whole, statistics, statistics, whole]


def embed_layer_normalization(operation: Operation) -> list[Value]:
    """Trace EmbedLayerNormalization: the sum of three embeddings, normalised over the last axis."""
    ids, shape = images(operation), operation.shape(0)
    if ids.axis is None:
        raise NotProved("has ids without rows")
    operation.fixed(2, 3, 4, 5, 6)
    same_rows(operation, (1, 7), shape[0])
    table = operation.shape(2)
    output = Value((*shape, table[-1]), 0)
    return [output, Value((shape[0],), 0), output]


def _check_bias(operation: Operation, index: int, rows: Size) -> None:
    bias = operation.optional(index)
    if bias is not None and broadcast_values([Value((rows, *operation.fresh_shape(3)), 0), bias]).rank != 4:
        raise NotProved("has a bias of too many dimensions")


def _check_past(operation: Operation, index: int, rows: Size) -> None:
    past = operation.optional(index)
    if past is not None and (past.axis != 1 or past.shape is None or past.shape[1] != rows):
        raise NotProved("has a cache that does not belong to the rows")


def _attended(operation: Operation, rows: Size, hidden: Size) -> list[Value]:
    output = Value((rows, operation.shape(0)[1], hidden), 0)
    return [output, Value((Size(2), rows, *operation.fresh_shape(3)), 1)]


def attention(operation: Operation) -> list[Value]:
    """Trace Attention, which projects its input itself."""
    value, shape = images(operation), operation.shape(0)
    if value.axis is None or len(shape) != 3:
        raise NotProved("has no rows of tokens")
    operation.fixed(1, 2)
    same_rows(operation, (3,), shape[0])
    _check_past(operation, 4, shape[0])
    _check_bias(operation, 5, shape[0])
    operation.fixed(6)
    sizes, bias = operation.ints_attribute("qkv_hidden_sizes"), operation.input(1).shape
    hidden = Size(sizes[2]) if sizes else operation.fresh()
    if not sizes and bias is not None and bias[-1].known is not None:
        hidden = Size(bias[-1].known // 3)
    return _attended(operation, shape[0], hidden)


def quantized_attention(operation: Operation) -> list[Value]:
    """Trace QAttention: quantized attention, whose scales all rows share."""
    value, shape = images(operation), operation.shape(0)
    if value.axis is None or len(shape) != 3:
        raise NotProved("has no rows of tokens")
    operation.fixed(1, 2, 3, 4, 6, 7)
    same_rows(operation, (5,), shape[0])
    _check_past(operation, 8, shape[0])
    weights = operation.input(1).shape
    hidden = operation.fresh()
    if weights is not None and weights[-1].known is not None:
        hidden = Size(weights[-1].known // 3)
    return _attended(operation, shape[0], hidden)


def multi_head_attention(operation: Operation) -> list[Value]:
    """Trace MultiHeadAttention of projected queries, keys and values."""
    query, shape = images(operation), operation.shape(0)
    if query.axis is None:
        raise NotProved("has queries without rows")
    same_rows(operation, (1, 2, 4, 6, 7), shape[0])
    operation.fixed(3)
    _check_bias(operation, 5, shape[0])
    if len(operation.inputs) > 8 and operation.optional(8) is not None:
        raise NotProved("shares its cache with others")
    values = operation.optional(2)
    hidden = operation.fresh()
    if values is not None and values.rank == 3 and values.shape is not None:
        hidden = values.shape[2]
    elif values is None and len(shape) == 5:
        known = [size.known for size in shape[2:]]
        hidden = Size((known[0] or 0) * (known[2] or 0)) if None not in known else hidden
    cache = Value((shape[0], *operation.fresh_shape(3)), 0)
    return [Value((shape[0], shape[1], hidden), 0), cache, cache, cache]


def rotary_embedding(operation: Operation) -> list[Value]:
    """Trace RotaryEmbedding; positions start at one number that all rows share, or each token has its own."""
    value, shape = images(operation), operation.shape(0)
    operation.fixed(2, 3)
    if value.axis is None:
        raise NotProved("rotates a tensor without rows")
    positions = operation.input(1)
    if positions.axis is not None or positions.shape != (ONE,):
        same_rows(operation, (1,), shape[0])
    return [value]


def narrow_matmul(operation: Operation) -> list[Value]:
    """Trace MatMulNBits: a product with weights of a few bits."""
    operation.fixed(*range(1, len(operation.inputs)))
    value, shape = operation.input(0), operation.shape(0)
    if value.axis == len(shape) - 1:
        raise NotProved("sums over the batch axis")
    return [Value((*shape[:-1], Size(operation.int_attribute("N", 0))), value.axis)]


def fused_convolve(operation: Operation) -> list[Value]:
    """Trace FusedConv: a convolution, an optional sum with another tensor, and an activation."""
    operation.fixed(1, 2)
    whole = convolve(_with_inputs(operation, list(operation.inputs[:3])))[0]
    other = operation.optional(3)
    return [whole if other is None else broadcast_values([whole, other.without_content()])]


def qlinear_binary(operation: Operation) -> list[Value]:
    """Trace an elementwise function of two quantized tensors."""
    operation.fixed(1, 2, 4, 5, 6, 7)
    return [broadcast_values([operation.input(0).without_content(), operation.input(3).without_content()])]


def qgemm(operation: Operation) -> list[Value]:
    """Trace QGemm; of its settings, only transposed weights are supported."""
    operation.fixed(1, 2, 3, 4, 5, 6, 7, 8)
    return gemm(_with_inputs(operation, [operation.input(0), operation.input(3)]))


def _with_inputs(operation: Operation, inputs: list[Value | None]) -> Operation:
    return Operation(operation.node, operation.version, inputs, operation.numbers)


def qlinear_softmax(operation: Operation) -> list[Value]:
    """Trace QLinearSoftmax, in the operator set that its attribute names."""
    operation.fixed(1, 2, 3, 4)
    return softmax(
        Operation(operation.node, operation.int_attribute("opset", 1), operation.inputs[:1], operation.numbers)
    )


def qlinear_pool(operation: Operation) -> list[Value]:
    """Trace quantized pooling with channels first."""
    if operation.int_attribute("channels_last", 0):
        raise NotProved("has channels last, which is not supported")
    return global_pool(operation)


RULES: dict[str, Rule] = {
    "Attention": attention,
    "BiasGelu": biased,
    "DequantizeLinear": quantize,
    "EmbedLayerNormalization": embed_layer_normalization,
    "FastGelu": biased,
    "FusedConv": fused_convolve,
    "FusedGemm": gemm,
    "FusedMatMul": fused_matmul,
    "Gelu": unary,
    "MatMulIntegerToFloat": matmul,
    "MatMulNBits": narrow_matmul,
    "MultiHeadAttention": multi_head_attention,
    "QAttention": quantized_attention,
    "QGemm": qgemm,
    "QLinearAdd": qlinear_binary,
    "QLinearGlobalAveragePool": qlinear_pool,
    "QLinearLeakyRelu": unary,
    "QLinearMul": qlinear_binary,
    "QLinearSigmoid": unary,
    "QLinearSoftmax": qlinear_softmax,
    "QuantizeLinear": quantize,
    "QuickGelu": unary,
    "RotaryEmbedding": rotary_embedding,
    "SkipLayerNormalization": skip_layer_normalization,
    "SkipSimplifiedLayerNormalization": skip_layer_normalization,
}
# In the standard domain too, where ONNX Runtime had it before ONNX adopted it.
STANDARD_RULES: dict[str, Rule] = {"SimplifiedLayerNormalization": layer_normalization}
