"""Operators that pick, scatter, pad and resize elements."""

from service.models.row_independence.operation import Operation, Rule, positive_axis
from service.models.row_independence.operators.networks import images, same_rows
from service.models.row_independence.operators.shapes import elements
from service.models.row_independence.sizes import ONE, Size, add, product
from service.models.row_independence.values import NotProved, Value, ints


def pad(operation: Operation) -> list[Value]:
    """Trace Pad: elements are added around those of a row."""
    value, shape = operation.input(0).without_content(), operation.shape(0)
    operation.fixed(2)
    axes = list(range(len(shape)))
    if operation.version < 11:
        pads = [Size(each) for each in operation.ints_attribute("pads") or []]
    else:
        given = elements(operation, operation.input(1))
        if given is None:
            operation.fixed(0)
            return [Value(operation.fresh_shape(len(shape)))]
        pads = given
        if operation.optional(3) is not None:
            axes = [positive_axis(axis, len(shape)) for axis in operation.axes(3) or []]
    sizes = list(shape)
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        if before.known == 0 and after.known == 0:
            continue
        if axis == value.axis:
            raise NotProved("pads the batch axis")
        if not (before.is_batch_free and after.is_batch_free):
            raise NotProved("pads by the number of rows")
        sizes[axis] = add(add(sizes[axis], before), after)
        if not sizes[axis].is_dimension:
            sizes[axis] = operation.fresh()
    return [Value(tuple(sizes), value.axis)]


def resize(operation: Operation) -> list[Value]:
    """Trace Resize of images."""
    value, shape = images(operation), operation.shape(0)
    operation.fixed(1)
    policy = operation.text_attribute("keep_aspect_ratio_policy", "stretch")
    if (
        operation.text_attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
        or policy != "stretch"
    ):
        raise NotProved("cuts or keeps proportions, which is not supported")
    axes = [positive_axis(axis, len(shape)) for axis in operation.ints_attribute("axes") or range(len(shape))]
    old = operation.version < 11
    scales = operation.optional(1 if old else 2)
    targets = None if old else operation.optional(3)
    sizes = list(shape)
    if targets is not None:
        given = elements(operation, targets)
        if given is None:
            raise NotProved("has an unknown number of sizes")
        for axis, size in zip(axes, given, strict=True):
            if axis == value.axis and size != shape[axis]:
                raise NotProved("resizes the batch axis")
            sizes[axis] = size if size.is_dimension else operation.fresh()
        return [Value(tuple(sizes), value.axis)]
    if scales is None or scales.axis is not None:
        raise NotProved("has no scales that are known")
    factors = [None] * len(axes) if scales.content is None else list(scales.content.flat)
    for axis, factor in zip(axes, factors, strict=True):
        if factor == 1.0:
            continue
        if axis == value.axis:
            raise NotProved("resizes the batch axis")
        known = shape[axis].known
        whole = known is not None and isinstance(factor, float) and factor >= 1 and factor == int(factor)
        sizes[axis] = Size((known or 0) * int(factor or 0)) if whole else operation.fresh()
    return [Value(tuple(sizes), value.axis)]


def upsample(operation: Operation) -> list[Value]:
    """Trace Upsample, the predecessor of Resize."""
    value, shape = images(operation), operation.shape(0)
    scales = operation.optional(1)
    factors = operation.node.attributes.get("scales") if scales is None else None
    if scales is not None and scales.content is not None:
        factors = list(scales.content.flat)
    if factors is None or factors[0] != 1.0:
        raise NotProved("may resize the batch axis")
    return [Value((shape[0], *operation.fresh_shape(len(shape) - 1)), value.axis)]


def gather_elements(operation: Operation) -> list[Value]:
    """Trace GatherElements along an axis."""
    data, indices = operation.input(0).without_content(), operation.input(1).without_content()
    shape, of_indices = operation.shape(0), operation.shape(1)
    axis = positive_axis(operation.int_attribute("axis", 0), len(shape))
    if data.axis is not None and (data.axis == axis or indices.axis != data.axis):
        raise NotProved("selects elements of other rows by index")
    if data.axis is not None and shape[data.axis] != of_indices[data.axis]:
        raise NotProved("selects elements of another number of rows")
    if data.axis is None and indices.axis is not None and indices.axis != axis:
        raise NotProved("looks rows up by their place")
    return [Value(of_indices, indices.axis)]


def gather_nd(operation: Operation) -> list[Value]:
    """Trace GatherND: slices by several indices."""
    data, indices = operation.input(0).without_content(), operation.input(1).without_content()
    shape, of_indices = operation.shape(0), operation.shape(1)
    shared, depth = operation.int_attribute("batch_dims", 0), of_indices[-1].known
    if depth is None:
        raise NotProved("has indices of unknown length")
    sizes = (*of_indices[:-1], *shape[shared + depth :])
    if indices.axis == len(of_indices) - 1:
        raise NotProved("takes the batch axis for an index")
    if data.axis is None and (indices.axis is None or indices.axis >= shared):
        return [Value(sizes, indices.axis)]
    if data.axis is not None and data.axis < shared:
        if indices.axis != data.axis or shape[data.axis] != of_indices[data.axis]:
            raise NotProved("looks rows up by indices without rows")
        return [Value(sizes, data.axis)]
    if data.axis is not None and indices.axis is None and data.axis >= shared + depth:
        return [Value(sizes, data.axis - shared - depth + len(of_indices) - 1)]
    raise NotProved("selects rows by index")


def scatter_elements(operation: Operation) -> list[Value]:
    """Trace ScatterElements along an axis."""
    data, shape = operation.input(0).without_content(), operation.shape(0)
    axis = positive_axis(operation.int_attribute("axis", 0), len(shape))
    if data.axis is None or data.axis == axis:
        raise NotProved("writes to places that may belong to other rows")
    for index in (1, 2):
        other = operation.input(index)
        if other.axis != data.axis or other.shape is None or other.shape[data.axis] != shape[data.axis]:
            raise NotProved("writes values without rows")
    return [data]


def tensor_scatter(operation: Operation) -> list[Value]:
    """Trace TensorScatter: each row has its own position to write at."""
    value, shape = images(operation), operation.shape(0)
    if value.axis is None or positive_axis(operation.int_attribute("axis", -2), len(shape)) == 0:
        raise NotProved("writes to places that may belong to other rows")
    same_rows(operation, (1, 2), shape[0])
    return [value]


def one_hot(operation: Operation) -> list[Value]:
    """Trace OneHot: a vector for each number."""
    indices, shape = operation.input(0).without_content(), operation.shape(0)
    operation.fixed(1, 2)
    axis = positive_axis(operation.int_attribute("axis", -1), len(shape) + 1)
    depth = ints(operation.input(1))
    size = Size(depth[0]) if depth and depth[0] >= 0 else operation.fresh()
    place = indices.axis if indices.axis is None or indices.axis < axis else indices.axis + 1
    return [Value((*shape[:axis], size, *shape[axis:]), place)]


def reverse_sequence(operation: Operation) -> list[Value]:
    """Trace ReverseSequence: the first steps of each row are reversed."""
    value, shape = operation.input(0), operation.shape(0)
    axis = operation.int_attribute("batch_axis", 1)
    if value.axis != axis:
        raise NotProved("takes the batch axis for time")
    same_rows(operation, (1,), shape[axis])
    return [value]


def mean_variance(operation: Operation) -> list[Value]:
    """Trace MeanVarianceNormalization over axes."""
    value, shape = operation.input(0).without_content(), operation.shape(0)
    axes = operation.ints_attribute("axes") or [0, 2, 3]
    if value.axis in {positive_axis(axis, len(shape)) for axis in axes}:
        raise NotProved("normalises over the batch axis")
    return [value]


def grid_sample(operation: Operation) -> list[Value]:
    """Trace GridSample: each image has its own grid."""
    value, shape = images(operation), operation.shape(0)
    grid, of_grid = images(operation, 1), operation.shape(1)
    if value.axis is None or grid.axis is None or shape[0] != of_grid[0]:
        raise NotProved("samples images by a grid of other rows")
    return [Value((*shape[:2], *of_grid[1:-1]), 0)]


def loss(operation: Operation) -> list[Value]:
    """Trace a loss, which must not be reduced over rows."""
    operation.fixed(2)
    value, shape = images(operation), operation.shape(0)
    if value.axis is None or operation.text_attribute("reduction", "mean") != "none":
        raise NotProved("reduces over the batch axis")
    same_rows(operation, (1,), shape[0])
    return [Value((shape[0], *shape[2:]), 0), value]


def transform(operation: Operation) -> list[Value]:
    """Trace DFT along an axis."""
    operation.fixed(1, 2)
    value, shape = operation.input(0), operation.shape(0)
    given = operation.axes(2, "") if operation.version >= 20 else [operation.int_attribute("axis", 1)]
    axis = positive_axis(given[0] if given else -2, len(shape))
    if value.axis in {axis, len(shape) - 1}:
        raise NotProved("transforms along the batch axis")
    sizes = list(shape)
    sizes[axis], sizes[-1] = operation.fresh(), operation.fresh()
    return [Value(tuple(sizes), value.axis)]


def short_transform(operation: Operation) -> list[Value]:
    """Trace STFT: Fourier transforms of pieces of a signal."""
    operation.fixed(1, 2, 3)
    value, shape = images(operation), operation.shape(0)
    return [Value((shape[0], *operation.fresh_shape(2), Size(2)), value.axis)]


def rotary_embedding(operation: Operation) -> list[Value]:
    """Trace RotaryEmbedding: queries or keys are rotated by their positions."""
    value, shape = images(operation), operation.shape(0)
    if value.axis is None:
        raise NotProved("rotates a tensor without rows")
    positions = operation.optional(3)
    if positions is None:
        same_rows(operation, (1, 2), shape[0])
    else:
        operation.fixed(1, 2)
        same_rows(operation, (3,), shape[0])
    return [value]


def affine_grid(operation: Operation) -> list[Value]:
    """Trace AffineGrid: a grid for each row."""
    value, shape = images(operation), operation.shape(0)
    sizes = elements(operation, operation.input(1))
    if sizes is None or value.axis is None or sizes[0] != shape[0]:
        raise NotProved("makes grids for a fixed number of rows")
    spatial = [size if size.is_dimension else operation.fresh() for size in sizes[2:]]
    return [Value((shape[0], *spatial, Size(len(spatial))), 0)]


def string_normalizer(operation: Operation) -> list[Value]:
    """Trace StringNormalizer, which must not have stop words: it would drop elements, and with them rows."""
    value = operation.input(0)
    if operation.node.attributes.get("stopwords"):
        raise NotProved("leaves out rows that are stop words")
    if value.rank != 1:
        raise NotProved("takes one row at a time")
    return [value]


def tfidf(operation: Operation) -> list[Value]:
    """Trace TfIdfVectorizer: n-gram counts for each row of a matrix."""
    value, shape = images(operation), operation.shape(0)
    if len(shape) != 2:
        raise NotProved("takes rows for words of one text")
    return [Value((shape[0], operation.fresh()), value.axis)]


def column_to_image(operation: Operation) -> list[Value]:
    """Trace Col2Im: blocks are combined into an image."""
    operation.fixed(1, 2)
    value, shape = images(operation), operation.shape(0)
    blocks = operation.input(1).shape
    rank = None if blocks is None else product(blocks).known
    if rank is None:
        raise NotProved("makes an image of unknown rank")
    return [Value((shape[0], *operation.fresh_shape(rank + 1)), value.axis)]


def eye_like(operation: Operation) -> list[Value]:
    """Trace EyeLike: a matrix with ones on the diagonal."""
    operation.fixed(0)
    return [Value(operation.input(0).shape)]


def fixed_sizes(operation: Operation) -> list[Value]:
    """Trace an operator whose result depends on settings alone."""
    operation.fixed(*range(len(operation.inputs)))
    return [Value(None)]


def center_crop_pad(operation: Operation) -> list[Value]:
    """Trace CenterCropPad of the given axes."""
    operation.fixed(1)
    value, shape = operation.input(0), operation.shape(0)
    axes = {positive_axis(axis, len(shape)) for axis in operation.ints_attribute("axes") or range(len(shape))}
    if value.axis in axes:
        raise NotProved("cuts the batch axis")
    return [Value(tuple(operation.fresh() if axis in axes else size for axis, size in enumerate(shape)), value.axis)]


def array_feature_extractor(operation: Operation) -> list[Value]:
    """Trace ArrayFeatureExtractor: columns by index; rows may pick columns of a table that all rows share."""
    value, indices = operation.input(0).without_content(), operation.input(1).without_content()
    shape, of_indices = operation.shape(0), operation.shape(1)
    if value.axis is not None:
        operation.fixed(1)
    if value.axis == len(shape) - 1:
        raise NotProved("selects rows by index")
    if indices.axis is not None and product(of_indices[: indices.axis]) != ONE:
        raise NotProved("merges the batch axis with one before it")
    sizes = (*([ONE] if len(shape) == 1 else shape[:-1]), product(of_indices))
    return [Value(sizes, value.axis if indices.axis is None else len(sizes) - 1)]


RULES: dict[str, Rule] = {
    "AffineGrid": affine_grid,
    "BlackmanWindow": fixed_sizes,
    "CenterCropPad": center_crop_pad,
    "Col2Im": column_to_image,
    "DFT": transform,
    "EyeLike": eye_like,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "GridSample": grid_sample,
    "HammingWindow": fixed_sizes,
    "HannWindow": fixed_sizes,
    "MeanVarianceNormalization": mean_variance,
    "MelWeightMatrix": fixed_sizes,
    "NegativeLogLikelihoodLoss": loss,
    "OneHot": one_hot,
    "Pad": pad,
    "Resize": resize,
    "ReverseSequence": reverse_sequence,
    "RotaryEmbedding": rotary_embedding,
    "STFT": short_transform,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "SoftmaxCrossEntropyLoss": loss,
    "StringNormalizer": string_normalizer,
    "TensorScatter": tensor_scatter,
    "TfIdfVectorizer": tfidf,
    "Upsample": upsample,
}
