"""Which graphs are proved to keep the rows of a batch apart."""

import pytest

from tests.service.models.graphs import finding_of

DEPENDENT = {
    "all axes standardised": (
        "(float[B,4] x) => (float[B,4] y) { m = ReduceMean<keepdims=0>(x) y = Sub(x, m) }",
        "ReduceMean 'm' reduces over the batch axis",
    ),
    "scaled by the largest": (
        "(uint8[B,4,4] x) => (float[B,4,4] y) { f = Cast<to=1>(x) a = ReduceMax<keepdims=0>(f) y = Div(f, a) }",
        "ReduceMax 'a' reduces over the batch axis",
    ),
    "an axis counted from the end": (
        "(float[B,4] x) => (float[B,4] y) { m = ReduceMean<axes=[-2]>(x) y = Sub(x, m) }",
        "ReduceMean 'm' reduces over the batch axis",
    ),
    "divided by the number of rows": (
        "(float[B,4] x) => (float[B,4] y) <int64[1] zero = {0}> "
        "{ s = Shape(x) n = Gather(s, zero) f = Cast<to=1>(n) y = Div(x, f) }",
        "Div 'y' uses the number of rows",
    ),
    "softmax over rows": (
        "(float[B,4] x) => (float[B,4] y) { y = Softmax<axis=0>(x) }",
        "Softmax 'y' normalises along the batch axis",
    ),
    "a row picked by number": (
        "(float[B,4] x) => (float[B,4] y) <int64[1] zero = {0}> { f = Gather<axis=0>(x, zero) y = Sub(x, f) }",
        "Gather 'f' picks rows by number",
    ),
    "rows accumulated": (
        "(float[B,4] x) => (float[B,4] y) <int64 zero = {0}> { y = CumSum(x, zero) }",
        "CumSum 'y' accumulates along the batch axis",
    ),
    "rows sorted": (
        "(float[B] x) => (float[B] y) { s = Shape(x) y, i = TopK<axis=0>(x, s) }",
        "TopK 'y' sorts along the batch axis",
    ),
    "one scale for all": (
        "(float[B,4] x) => (float[B,4] y) { q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z) }",
        "DynamicQuantizeLinear 'q' takes one scale for all rows",
    ),
    "each row times each": (
        "(float[B,4] x) => (float[B,B] y) { t = Transpose(x) y = MatMul(x, t) }",
        "MatMul 'y' multiplies each row with each",
    ),
    "a product that sums over rows": (
        "(float[B,B] x, float[B,4] z) => (float[B,4] y) { t = Transpose(z) y = MatMul(t, z) }",
        "MatMul 'y' sums over the batch axis",
    ),
    "statistics of the batch": (
        "(float[B,2,4] x) => (float[B,2,4] y) <float[2] one = {1,1}> "
        "{ y, m, v = BatchNormalization<training_mode=1>(x, one, one, one, one) }",
        "BatchNormalization 'y' normalises by the mean of the batch",
    ),
    "time first": (
        "(float[T,3,4] x) => (float[T,1,3,5] y) <float[1,20,4] w, float[1,20,5] r> "
        "{ y = LSTM<hidden_size=5>(x, w, r) }",
        "LSTM 'y' takes the batch axis for time or features",
    ),
    "rows that become columns of one": (
        "(float[B,4] x) => (float[B,4] y) <int64[2] shape = {4,-1}> { r = Reshape(x, shape) y = Transpose(r) }",
        "Reshape 'r' merges the batch axis with one before it",
    ),
    "parts of rows": (
        "(float[B,3] x) => (float[B,2] y) <int64[2] shape = {-1,2}> { y = Reshape(x, shape) }",
        "Reshape 'y' may put parts of several rows together: 2 need not divide the size of a row",
    ),
    "decided by a value": (
        "(float[B,4] x) => (float[B,4] y) <float zero = {0}> { s = ReduceSum<keepdims=0>(x) c = Greater(s, zero) "
        "y = If(c) <then_branch = a () => (float[B,4] u) { u = Relu(x) }, "
        "else_branch = b () => (float[B,4] u) { u = Neg(x) }> }",
        "ReduceSum 's' reduces over the batch axis",
    ),
    "an unknown operator": (
        "(float[B,4] x) => (float[B,4] y) { y = com.microsoft.NobodyKnows(x) }",
        "NobodyKnows 'y' is not known to keep rows apart",
    ),
    "random numbers": (
        "(float[B,4] x) => (float[B,4] y) { r = RandomNormal<shape=[4]>() y = Add(x, r) }",
        "RandomNormal 'r' draws random numbers",
    ),
    "a table of one batch size": (
        "(float[B,4] x) => (float[B,4] y) <float[3,1] t = {1,2,3}> { y = Add(x, t) }",
        "Add 'y' combines rows along the batch axis with a dimension of 3",
    ),
    "another axis of any size": (
        "(float[B,4] x, float[B,T] z) => (float[B,4] y) { t = Transpose(z) y = Add(x, t) }",
        "Add 'y' combines rows along different axes, each with each",
    ),
    "a result that is no batch": (
        "(float[B,4] x) => (float[4] y) <float[4] c = {1,2,3,4}> { y = Identity(c) }",
        "output 'y' does not have the rows along its first dimension",
    ),
    "a first dimension of one size": (
        "(float[2,4] x) => (float[2,4] y) { y = Relu(x) }",
        "the first dimension of input 'x' is not of any size",
    ),
}


@pytest.mark.parametrize("case", DEPENDENT)
def test_a_graph_that_may_mix_rows_is_not_proved(case: str) -> None:
    """The reason names the operator, its node and what it does."""
    graph, reason = DEPENDENT[case]
    finding = finding_of(graph)
    assert (finding.independent, finding.reason) == (False, reason)


INDEPENDENT = {
    "a layer": (
        "(float[B,4] x) => (float[B,2] y) <float[4,2] w, float[2] b> { m = MatMul(x, w) a = Add(m, b) y = Relu(a) }"
    ),
    "standardised by row": (
        "(float[B,4] x) => (float[B,4] y) { m = ReduceMean<axes=[1]>(x) c = Sub(x, m) q = Mul(c, c) "
        "v = ReduceMean<axes=[1]>(q) s = Sqrt(v) y = Div(c, s) }"
    ),
    "tokens flattened and back": (
        "(float[B,T,8] x) => (float[B,T,3] y) <float[8,3] w, int64[2] flat = {-1,8}, int64[1] three = {3}> "
        "{ r = Reshape(x, flat) m = MatMul(r, w) s = Shape<start=0,end=2>(x) t = Concat<axis=0>(s, three) "
        "y = Reshape(m, t) }"
    ),
    "a table of the rows' ids": "(int64[B,T] x) => (float[B,T,8] y) <float[100,8] e> { y = Gather(e, x) }",
    "two inputs": "(float[B,4] a, float[B,1] b) => (float[B,4] y) { y = Add(a, b) }",
}


@pytest.mark.parametrize("case", INDEPENDENT)
def test_a_graph_that_keeps_rows_apart_is_proved(case: str) -> None:
    """Elementwise operators, products, reductions over other axes and shapes computed from the input's own."""
    finding = finding_of(INDEPENDENT[case])
    assert (finding.independent, finding.reason) == (True, "")
