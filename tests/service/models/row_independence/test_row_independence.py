"""Graphs that keep rows apart are proved, and graphs that may mix rows are not."""

import pytest

from tests.service.models.row_independence.graphs import finding_of

# A column with the number of each row.
_NUMBERS = (
    "{ r = Constant<value_int=0>() d = Constant<value_int=1>() e = Constant<value_ints=[1]>() "
    "h = Shape<start=0,end=1>(x) b = Squeeze(h) a = Range(r, b, d) c = Unsqueeze(a, e)"
)
# Two numbers for each row of the mask `x`: its offset in the flattened mask, and its length.
_LINE = (
    "line = Flatten<axis=2>(x) l = Shape<start=1,end=2>(x) m = Mul(c, l) n = Squeeze(l) p = Range(r, n, d) "
    "z = Constant<value_ints=[0]>() v = Unsqueeze(p, z)"
)
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
        "Gather 'f' selects rows by index",
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
        "MatMul 'y' multiplies each row with all others",
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
        "Reshape 'y' may mix parts of several rows: 2 need not divide the size of a row",
    ),
    "decided by a value": (
        "(float[B,4] x) => (float[B,4] y) <float zero = {0}> { s = ReduceSum<keepdims=0>(x) c = Greater(s, zero) "
        "y = If(c) <then_branch = a () => (float[B,4] u) { u = Relu(x) }, "
        "else_branch = b () => (float[B,4] u) { u = Neg(x) }> }",
        "ReduceSum 's' reduces over the batch axis",
    ),
    "an unknown operator": (
        "(float[B,4] x) => (float[B,4] y) { y = com.microsoft.NobodyKnows(x) }",
        "NobodyKnows 'y' is not known to compute each row alone",
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
        "Add 'y' combines each row with all others",
    ),
    "the number of a row": (
        f"(float[B,4] x) => (float[B,4] y) {_NUMBERS} f = Cast<to=1>(c) y = Add(x, f) }}",
        "output 'y' depends on the place of its row in the call",
    ),
    "the number of a row in a table": (
        f"(float[B,4] x) => (float[B,4] y) <float[100,4] t> {_NUMBERS} g = GatherND(t, c) y = Add(x, g) }}",
        "output 'y' depends on the place of its row in the call",
    ),
    "the row at another number": (
        f"(float[B,4] x) => (float[B,4] y) <int64 one = {{1}}> {_NUMBERS} p = Add(c, one) y = GatherND(x, p) }}",
        "GatherND 'y' selects rows by index",
    ),
    "a place beyond the row": (
        f"(float[B,T] x) => (float[B,T,1] y) {_NUMBERS} {_LINE} w = Add(v, d) i = Add(m, w) y = Gather(line, i) }}",
        "Gather 'y' looks rows up by indices that depend on rows",
    ),
    "a place that a loop moves on": (
        f"(float[B,T] x) => (float[B,T,1] y) <bool go = {{1}}> {_NUMBERS} {_LINE} w = Loop<body = b "
        "(int64 j, bool g, int64[1,T] u) => (bool h, int64[1,T] t) { h = Identity(g) one = Constant<value_int=1>() "
        "t = Add(u, one) }>(d, go, v) i = Add(m, w) y = Gather(line, i) }",
        "Gather 'y' looks rows up by indices that depend on rows",
    ),
    "a place that a value says": (
        f"(float[B,T] x, int64[B,1] w) => (float[B,1,1] y) {_NUMBERS} {_LINE} i = Add(m, w) y = Gather(line, i) }}",
        "Gather 'y' looks rows up by indices that depend on rows",
    ),
    "a place in rows of another length": (
        f"(float[B,T] x, float[B,S] w) => (float[B,1,1] y) {_NUMBERS} {_LINE} k = ArgMax<axis=1>(w) i = Add(m, k) "
        "y = Gather(line, i) }",
        "Gather 'y' looks rows up by indices that depend on rows",
    ),
    "rows of another length": (
        f"(float[B,T] x) => (float[B,T,1] y) {_NUMBERS} {_LINE} o = Add(l, d) q = Mul(c, o) i = Add(q, v) "
        "y = Gather(line, i) }",
        "Gather 'y' looks rows up by indices that depend on rows",
    ),
    "the place itself": (
        f"(float[B,T] x) => (int64[B,T] y) {_NUMBERS} {_LINE} y = Add(m, v) }}",
        "output 'y' depends on the place of its row in the call",
    ),
    "rows in pieces of another input's length": (
        "(float[B,T] x, float[B,S] w) => (float[B,S] y) { e = Constant<value_ints=[-1]>() l = Shape<start=1,end=2>(w) "
        "s = Concat<axis=0>(e, l) y = Reshape(x, s) }",
        "Reshape 'y' may mix parts of several rows: (size#1) need not divide the size of a row",
    ),
    "a mask of another length": (
        "(float[B,4] x, float[M,1] m) => (float[M,4] y) <int64[2] s = {1,-1}> { r = Reshape(m, s) y = Mul(x, r) }",
        "Mul 'y' combines each row with all others",
    ),
    "rounds that a row decides": (
        "(float[B,4] x, int64[B] n) => (float[B,4] y) <bool t = {1}, int64[1] z = {0}> { s = Squeeze(n) "
        "y = Loop<body = b (int64 i, bool c, float[r,k] v) => (bool co, float[r,k] vo) "
        "{ co = Identity(c) vo = Add(v, v) }>(s, t, x) }",
        "Squeeze 's' takes out every dimension of 1, and the number of rows may be 1",
    ),
    "the longest row": (
        "(int64[B,16] x) => (float[B,1] y) <int64 one = {1}, int64[1] axis = {1}> { g = Greater(x, one) "
        "f = Cast<to=1>(g) n = ReduceSum(f, axis) longest = ReduceMax<keepdims=0>(n) i = Cast<to=1>(x) "
        "s = ReduceSum(i, axis) y = Div(s, longest) }",
        "ReduceMax 'longest' reduces over the batch axis",
    ),
    "smoothed over time": (
        "(float[T,4] x) => (float[T,4] y) <float[4] s = {0,0,0,0}> { e, y = Scan<num_scan_inputs=1, body = b "
        "(float[4] s, float[4] v) => (float[4] so, float[4] yo) { so = Add(s, v) yo = Identity(so) }>(s, x) }",
        "Scan 'e' iterates over the rows",
    ),
    "a result that is no batch": (
        "(float[B,4] x) => (float[4] y) <float[4] c = {1,2,3,4}> { y = Identity(c) }",
        "output 'y' does not have the rows along its first dimension",
    ),
    "a first dimension of one size": (
        "(float[2,4] x) => (float[2,4] y) { y = Relu(x) }",
        "the first dimension of input 'x' has a fixed size",
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
    "a row found by its number": (f"(float[B,4] x) => (float[B,4] y) {_NUMBERS} g = GatherND(x, c) y = Add(x, g) }}"),
    "a place in each row, found by its number": (
        f"(float[B,4] x, int64[B,1] p) => (float[B] y) {_NUMBERS} q = Concat<axis=-1>(c, p) y = GatherND(x, q) }}"
    ),
    "a place found in the line of all rows": (
        f"(float[B,T] x) => (float[B,T,1] y) {_NUMBERS} {_LINE} i = Add(m, v) y = Gather(line, i) }}"
    ),
    "the place of the largest, found in the line": (
        f"(float[B,T] x, float[B,T] w) => (float[B,1,1] y) {_NUMBERS} {_LINE} k = ArgMax<axis=1>(w) i = Add(k, m) "
        "y = Gather(line, i) }"
    ),
    "rows in pieces of an equal input's length": (
        "(float[B,T] x, float[B,T] w) => (float[B,T] y) { e = Constant<value_ints=[-1]>() l = Shape<start=1,end=2>(w) "
        "s = Concat<axis=0>(e, l) r = Reshape(x, s) y = Add(r, w) }"
    ),
    "as many positions as there are words, as a piece of all positions": (
        "(float[B,T] x) => (float[B,T] y) <float[300] t> { l = Shape<start=1,end=2>(x) z = Constant<value_ints=[0]>() "
        "p = Slice(t, z, l) a = Add(x, p) e = Constant<value_ints=[-1]>() s = Concat<axis=0>(e, l) y = Reshape(a, s) }"
    ),
    "steps along another axis": (
        "(float[B,7,4] x) => (float[B,7,4] y) <float[4] z = {0,0,0,0}> { h = Shape<start=0,end=1>(x) "
        "w = Shape<start=2,end=3>(x) k = Concat<axis=0>(h, w) s = Expand(z, k) "
        "e, y = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1], body = b "
        "(float[B,4] s, float[B,4] v) => (float[B,4] so, float[B,4] yo) { so = Add(s, v) yo = Identity(so) }>(s, x) }"
    ),
    "labels looked up by the largest score": (
        "(float[B,3] x) => (int64[B] y) <int64[3] l = {5,6,7}, int64[1] f = {-1}> { a = ArgMax<axis=1>(x) "
        "e = ai.onnx.ml.ArrayFeatureExtractor(l, a) y = Reshape(e, f) }"
    ),
    "two inputs": "(float[B,4] a, float[B,1] b) => (float[B,4] y) { y = Add(a, b) }",
}


@pytest.mark.parametrize("case", INDEPENDENT)
def test_a_graph_that_keeps_rows_apart_is_proved(case: str) -> None:
    """Elementwise operators, products, reductions over other axes and shapes computed from inputs are proved."""
    finding = finding_of(INDEPENDENT[case])
    assert (finding.independent, finding.reason) == (True, "")


def test_a_proof_says_which_sizes_it_takes_for_equal() -> None:
    """These are dimensions of the same name other than the batch; a name that occurs once does not count."""
    graph = "(float[B,T] x, float[B,T,N] w, float[M,N,K] v) => (float[B,T] y) { y = Add(x, x) }"
    assert set(finding_of(graph).equal_sizes) == {(("x", 1), ("w", 1)), (("w", 2), ("v", 1))}
