"""Tensors in the messages of the Open Inference Protocol."""

import numpy as np
import pytest

from proto import inference_pb2
from service.tensors import bytes_array
from service.transport.codec import encode_raw
from service.transport.grpc_tensors import InferMessage, read_inputs

FLOATS, TEXTS = np.arange(6, dtype=np.float32).reshape(2, 3), bytes_array([b"one", b"two"])


def message(*, raw: bool) -> inference_pb2.ModelInferRequest:
    """Six numbers and two texts."""
    request = inference_pb2.ModelInferRequest(model_name="any")
    floats = request.inputs.add(name="floats", datatype="FP32", shape=FLOATS.shape)
    texts = request.inputs.add(name="texts", datatype="BYTES", shape=TEXTS.shape)
    if raw:
        request.raw_input_contents.extend([encode_raw(FLOATS), encode_raw(TEXTS)])
    else:
        floats.contents.fp32_contents.extend(FLOATS.ravel().tolist())
        texts.contents.bytes_contents.extend(TEXTS.tolist())
    return request


@pytest.mark.parametrize(("raw", "read_singly"), [(True, 2), (False, 8)])
def test_messages_are_read_up_to_so_many_elements(raw: bool, read_singly: int) -> None:
    """Those that are read one by one count: texts, and numbers in typed contents."""
    request = message(raw=raw)
    for at_most in (read_singly, None):
        arrays = read_inputs(InferMessage(request, request.raw_input_contents), at_most)
        assert arrays is not None
        assert arrays["floats"].tolist() == FLOATS.tolist()
        assert arrays["texts"].tolist() == TEXTS.tolist()
    assert read_inputs(InferMessage(request, request.raw_input_contents), read_singly - 1) is None
