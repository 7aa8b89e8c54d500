"""Operators of ai.onnx.ml, which converters of scikit-learn, XGBoost and LightGBM write."""

from typing import Any

from service.models.row_independence.operation import Operation, Rule
from service.models.row_independence.operators.elementwise import unary
from service.models.row_independence.operators.networks import images
from service.models.row_independence.operators.selection import array_feature_extractor
from service.models.row_independence.sizes import Size
from service.models.row_independence.values import NotProved, Shape, Value


def _table(operation: Operation, index: int = 0) -> tuple[Value, Shape]:
    """Require a matrix of rows and features; a vector would be the features of one row."""
    value, shape = images(operation, index), operation.shape(index)
    if len(shape) != 2:
        raise NotProved("takes rows for the features of one")
    return value, shape


def predict(operation: Operation) -> list[Value]:
    """Trace an operator that computes numbers for each row of features."""
    value, shape = _table(operation)
    return [Value((shape[0], operation.fresh()), value.axis)]


def linear_predict(operation: Operation) -> list[Value]:
    """Trace LinearRegressor: one number for each target and row."""
    value, shape = _table(operation)
    return [Value((shape[0], Size(operation.int_attribute("targets", 1))), value.axis)]


def regress(operation: Operation) -> list[Value]:
    """Trace tree ensembles (a number for each target and row) and support vector machines (one for each row)."""
    value, shape = _table(operation)
    targets = operation.int_attribute("n_targets", 1)
    return [Value((shape[0], Size(targets)), value.axis)]


_LABELS = ("classlabels_int64s", "classlabels_ints", "classlabels_strings")


def classify(operation: Operation) -> list[Value]:
    """Trace a classifier: a label and the scores of all classes for each row."""
    value, shape = _table(operation)
    attributes = operation.node.attributes
    labels: list[Any] = next((attributes[name] for name in _LABELS if attributes.get(name)), [])
    scores = Size(len(labels)) if len(labels) > 2 else operation.fresh()  # two classes may have a single score
    return [Value((shape[0],), value.axis), Value((shape[0], scores), value.axis)]


def columns(operation: Operation) -> list[Value]:
    """Trace an operator that keeps the shape and computes each row independently."""
    value, _ = _table(operation)
    return [value]


def one_hot_encode(operation: Operation) -> list[Value]:
    """Trace OneHotEncoder: a vector for each element."""
    value, shape = operation.input(0), operation.shape(0)
    categories = operation.node.attributes.get("cats_int64s") or operation.node.attributes.get("cats_strings") or []
    return [Value((*shape, Size(len(categories))), value.axis)]


def join_features(operation: Operation) -> list[Value]:
    """Trace FeatureVectorizer: features of several tensors are concatenated."""
    tables = [_table(operation, index) for index in range(len(operation.inputs))]
    if len({(value.axis, shape[0]) for value, shape in tables}) > 1:
        raise NotProved("joins rows with features of no row")
    return [Value((tables[0][1][0], operation.fresh()), tables[0][0].axis)]


RULES: dict[str, Rule] = {
    "ArrayFeatureExtractor": array_feature_extractor,
    "Binarizer": unary,
    "CategoryMapper": unary,
    "FeatureVectorizer": join_features,
    "Imputer": columns,
    "LabelEncoder": unary,
    "LinearClassifier": classify,
    "LinearRegressor": linear_predict,
    "Normalizer": columns,
    "OneHotEncoder": one_hot_encode,
    "SVMClassifier": classify,
    "SVMRegressor": regress,
    "Scaler": columns,
    "TreeEnsemble": predict,
    "TreeEnsembleClassifier": classify,
    "TreeEnsembleRegressor": regress,
}
