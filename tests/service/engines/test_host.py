"""What engines share: hosts are independent of each other, and engines on the CPU beside a GPU have its preemption."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from service.engines.host import EngineHost
from tests.service.stoppable import PATIENCE_S, StopFlag


def test_a_request_to_one_host_does_not_stop_the_calls_of_another() -> None:
    """A background call of the one waits for the end of the request, the same call of the other begins at once."""
    asked, other = EngineHost(), EngineHost()
    asked.preemption.preempt_background()

    def call_in_background(host: EngineHost) -> object:
        host.preemption.lower_engine_priority()
        return host.preemption.run_preemptible(type, StopFlag, PATIENCE_S)

    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(call_in_background, asked)
        assert threads.submit(call_in_background, other).result(PATIENCE_S) is StopFlag
        assert not waiting.done()
        asked.preemption.resume_background()
        assert waiting.result(PATIENCE_S) is StopFlag


def test_engines_on_the_cpu_beside_a_gpu_share_its_preemption() -> None:
    """They do not wait for the lock of the GPU; engines on the GPU do."""
    host = EngineHost("cuda")
    assert host.on_cpu().device == "cpu"
    assert host.on_cpu().preemption is host.preemption

    def use(chosen: EngineHost) -> None:
        with chosen.shared_use():
            pass

    with ThreadPoolExecutor(2) as threads:
        with host.gpu_lock.exclusive():
            threads.submit(use, host.on_cpu()).result(PATIENCE_S)
            waiting = threads.submit(use, host)
            with pytest.raises(TimeoutError):
                waiting.result(0.05)
        waiting.result(PATIENCE_S)
