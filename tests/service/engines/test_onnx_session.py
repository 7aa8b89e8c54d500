"""Sessions of ONNX Runtime: how their calls are stopped."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from service.engines.host import EngineHost
from service.engines.onnx_session import open_session, run_session, tensor_specs
from tests.service.engines.store_models import TEXTS, graph_of, texts


def test_a_background_call_is_stopped_and_made_again() -> None:
    """ONNX Runtime ends the call with an error, and the next try computes the usual result."""
    host = EngineHost()
    session = open_session(graph_of(TEXTS), 1, host)
    names, feeds = [spec.name for spec in tensor_specs(session.get_outputs())], texts(2, 9)
    told = list[bool]()
    held = threading.Event()

    def call(options: Any) -> list[Any]:
        if not told:
            host.preemption.preempt_background()
        told.append(options.terminate)
        held.set()
        return list(session.run(names, feeds, options))

    with ThreadPoolExecutor(1, initializer=host.preemption.lower_engine_priority) as thread:
        computing = thread.submit(run_session, call, host)
        assert held.wait(20)
        host.preemption.resume_background()
        (found, *_) = computing.result(20)
    assert told == [True, False]
    np.testing.assert_array_equal(found, session.run(names, feeds)[0])
