"""Graphs in which a value of a request may decide how long its call takes are recognised."""

import pytest

from tests.service.models.row_independence.graphs import finding_of

_BODY = "body = b (int64 i, bool c, float[r,k] v) => (bool co, float[r,k] vo) { co = Identity(c) vo = Add(v, v) }"
BY_VALUE = {
    "rounds": f"(float[B,4] x, int64 n) => (float[B,4] y) <bool t = {{1}}> {{ y = Loop<{_BODY}>(n, t, x) }}",
    "an end that a value brings": (
        "(float[B,4] x) => (float[B,4] y) <bool t = {1}, float one = {1}> { y = Loop<body = b (int64 i, bool c, "
        "float[r,k] v) => (bool co, float[r,k] vo) { m = ReduceMax<keepdims=0>(v) co = Less(m, one) vo = Add(v, v) }>"
        "(, t, x) }"
    ),
    "a branch": (
        "(float[B,4] x) => (float[B,4] y) <float z = {0}> { s = ReduceSum<keepdims=0>(x) c = Greater(s, z) "
        "y = If(c) <then_branch = a () => (float[B,4] u) { u = Relu(x) }, "
        "else_branch = e () => (float[B,4] u) { u = Neg(x) }> }"
    ),
    "what is not zero": "(float[B] x) => (int64[1,N] y) { y = NonZero(x) }",
    "a range": (
        "(int64[B] x) => (int64[N] y) <int64 z = {0}, int64 o = {1}> "
        "{ m = ReduceMax<keepdims=0>(x) y = Range(z, m, o) }"
    ),
    "a shape": "(float[B] x, int64[2] s) => (float[N,M] y) { y = Expand(x, s) }",
    "a number of results": "(float[B,4] x, int64[1] k) => (float[B,N] y) { y, i = TopK(x, k) }",
    "an unknown operator": "(float[B,4] x) => (float[B,4] y) { y = com.microsoft.NobodyKnows(x) }",
}
BY_SHAPE = {
    "a mean over rows": "(float[B,4] x) => (float[B,4] y) { m = ReduceMean<keepdims=0>(x) y = Sub(x, m) }",
    "a shape of the input": ("(float[B,4] x) => (float[B,4] y) { s = Shape(x) c = ConstantOfShape(s) y = Add(x, c) }"),
    "rounds by shape": (
        f"(float[B,4] x) => (float[B,4] y) <bool t = {{1}}, int64 one = {{1}}> "
        f"{{ s = Shape(x) n = Gather(s, one) y = Loop<{_BODY}>(n, t, x) }}"
    ),
    "a fixed number of results": ("(float[B,4] x) => (float[B,2] y) <int64[1] k = {2}> { y, i = TopK(x, k) }"),
}


@pytest.mark.parametrize("case", BY_VALUE)
def test_a_value_that_decides_rounds_or_shapes_is_found(case: str) -> None:
    """Values matter in loops, branches, and operators whose result's size depends on a value."""
    assert not finding_of(BY_VALUE[case]).constant_cost


@pytest.mark.parametrize("case", BY_SHAPE)
def test_work_that_shapes_decide_is_constant(case: str) -> None:
    """The work may be constant although rows depend on each other."""
    assert finding_of(BY_SHAPE[case]).constant_cost
