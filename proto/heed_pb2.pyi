from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClassifyTextRequest(_message.Message):
    __slots__ = ("model", "version", "text", "truncate")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    text: str
    truncate: bool
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., text: _Optional[str] = ..., truncate: _Optional[bool] = ...) -> None: ...

class ClassifyTextResponse(_message.Message):
    __slots__ = ("label", "score", "scores", "receipt")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    label: str
    score: float
    scores: _containers.RepeatedCompositeFieldContainer[ClassScore]
    receipt: Receipt
    def __init__(self, label: _Optional[str] = ..., score: _Optional[float] = ..., scores: _Optional[_Iterable[_Union[ClassScore, _Mapping]]] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class ClassifyImageRequest(_message.Message):
    __slots__ = ("model", "version", "image", "top_k")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    image: bytes
    top_k: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., image: _Optional[bytes] = ..., top_k: _Optional[int] = ...) -> None: ...

class ClassifyImageResponse(_message.Message):
    __slots__ = ("label", "score", "scores", "receipt")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    label: str
    score: float
    scores: _containers.RepeatedCompositeFieldContainer[ClassScore]
    receipt: Receipt
    def __init__(self, label: _Optional[str] = ..., score: _Optional[float] = ..., scores: _Optional[_Iterable[_Union[ClassScore, _Mapping]]] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class TranslateRequest(_message.Message):
    __slots__ = ("model", "version", "text", "truncate", "num_beams", "max_new_tokens", "length_penalty")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    NUM_BEAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_PENALTY_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    text: str
    truncate: bool
    num_beams: int
    max_new_tokens: int
    length_penalty: float
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., text: _Optional[str] = ..., truncate: _Optional[bool] = ..., num_beams: _Optional[int] = ..., max_new_tokens: _Optional[int] = ..., length_penalty: _Optional[float] = ...) -> None: ...

class TranslateResponse(_message.Message):
    __slots__ = ("translation", "score", "num_tokens", "receipt")
    TRANSLATION_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    translation: str
    score: float
    num_tokens: int
    receipt: Receipt
    def __init__(self, translation: _Optional[str] = ..., score: _Optional[float] = ..., num_tokens: _Optional[int] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class TranslateChunk(_message.Message):
    __slots__ = ("text", "whole")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    text: str
    whole: TranslateResponse
    def __init__(self, text: _Optional[str] = ..., whole: _Optional[_Union[TranslateResponse, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("model", "version", "text", "image", "truncate", "method", "target", "n_samples", "seed", "num_beams", "max_new_tokens", "length_penalty", "part", "layer", "head")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    N_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NUM_BEAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    text: str
    image: bytes
    truncate: bool
    method: str
    target: str
    n_samples: int
    seed: int
    num_beams: int
    max_new_tokens: int
    length_penalty: float
    part: str
    layer: int
    head: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., text: _Optional[str] = ..., image: _Optional[bytes] = ..., truncate: _Optional[bool] = ..., method: _Optional[str] = ..., target: _Optional[str] = ..., n_samples: _Optional[int] = ..., seed: _Optional[int] = ..., num_beams: _Optional[int] = ..., max_new_tokens: _Optional[int] = ..., length_penalty: _Optional[float] = ..., part: _Optional[str] = ..., layer: _Optional[int] = ..., head: _Optional[int] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("method", "target", "score", "features", "target_tokens", "patches", "overlay", "fidelity", "receipt", "tokens", "attention")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    TARGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PATCHES_FIELD_NUMBER: _ClassVar[int]
    OVERLAY_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    method: str
    target: str
    score: float
    features: _containers.RepeatedCompositeFieldContainer[Feature]
    target_tokens: _containers.RepeatedScalarFieldContainer[str]
    patches: Patches
    overlay: bytes
    fidelity: Fidelity
    receipt: Receipt
    tokens: _containers.RepeatedCompositeFieldContainer[ExplainedToken]
    attention: Attention
    def __init__(self, method: _Optional[str] = ..., target: _Optional[str] = ..., score: _Optional[float] = ..., features: _Optional[_Iterable[_Union[Feature, _Mapping]]] = ..., target_tokens: _Optional[_Iterable[str]] = ..., patches: _Optional[_Union[Patches, _Mapping]] = ..., overlay: _Optional[bytes] = ..., fidelity: _Optional[_Union[Fidelity, _Mapping]] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ..., tokens: _Optional[_Iterable[_Union[ExplainedToken, _Mapping]]] = ..., attention: _Optional[_Union[Attention, _Mapping]] = ...) -> None: ...

class ExplainedToken(_message.Message):
    __slots__ = ("text", "start", "end", "weight", "feature")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    text: str
    start: int
    end: int
    weight: float
    feature: int
    def __init__(self, text: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., weight: _Optional[float] = ..., feature: _Optional[int] = ...) -> None: ...

class Attention(_message.Message):
    __slots__ = ("part", "layers", "heads", "layer", "head", "rows", "weights")
    PART_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    part: str
    layers: int
    heads: int
    layer: int
    head: int
    rows: int
    weights: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, part: _Optional[str] = ..., layers: _Optional[int] = ..., heads: _Optional[int] = ..., layer: _Optional[int] = ..., head: _Optional[int] = ..., rows: _Optional[int] = ..., weights: _Optional[_Iterable[float]] = ...) -> None: ...

class Feature(_message.Message):
    __slots__ = ("text", "start", "end", "weight", "influence")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    INFLUENCE_FIELD_NUMBER: _ClassVar[int]
    text: str
    start: int
    end: int
    weight: float
    influence: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, text: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., weight: _Optional[float] = ..., influence: _Optional[_Iterable[float]] = ...) -> None: ...

class Patches(_message.Message):
    __slots__ = ("rows", "columns", "weights")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    columns: int
    weights: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, rows: _Optional[int] = ..., columns: _Optional[int] = ..., weights: _Optional[_Iterable[float]] = ...) -> None: ...

class Fidelity(_message.Message):
    __slots__ = ("deletion_area", "insertion_area", "completeness_gap", "evaluations", "seed", "seconds")
    DELETION_AREA_FIELD_NUMBER: _ClassVar[int]
    INSERTION_AREA_FIELD_NUMBER: _ClassVar[int]
    COMPLETENESS_GAP_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    deletion_area: float
    insertion_area: float
    completeness_gap: float
    evaluations: int
    seed: int
    seconds: float
    def __init__(self, deletion_area: _Optional[float] = ..., insertion_area: _Optional[float] = ..., completeness_gap: _Optional[float] = ..., evaluations: _Optional[int] = ..., seed: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class ClassScore(_message.Message):
    __slots__ = ("label", "score")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    label: str
    score: float
    def __init__(self, label: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("model_version", "preprocess_us", "queue_us", "compute_us", "postprocess_us", "batch_size", "padded_tokens", "batch_tokens", "truncated")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PREPROCESS_US_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    POSTPROCESS_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    PADDED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    preprocess_us: int
    queue_us: int
    compute_us: int
    postprocess_us: int
    batch_size: int
    padded_tokens: int
    batch_tokens: int
    truncated: bool
    def __init__(self, model_version: _Optional[str] = ..., preprocess_us: _Optional[int] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ..., postprocess_us: _Optional[int] = ..., batch_size: _Optional[int] = ..., padded_tokens: _Optional[int] = ..., batch_tokens: _Optional[int] = ..., truncated: _Optional[bool] = ...) -> None: ...
