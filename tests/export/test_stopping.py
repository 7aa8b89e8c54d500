"""Signals that are noted until the work is whole."""

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from export.stopping import STOPS, Terminated, raise_if_stopped, stop_on_signals, stopping_later


def work(*signals: int) -> Iterator[str]:
    """Receive signals within a block; yield at its begin, and where it is whole."""
    with stopping_later("") as noted:
        yield "begun"
        for number in signals:
            os.kill(os.getpid(), number)
        assert noted == [*signals]
        yield "whole"


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_the_first_signal_acts_at_the_end_of_the_block(number: int, raised: type[KeyboardInterrupt]) -> None:
    """The block runs to its end, and earlier handlers are back afterwards."""
    before = [signal.getsignal(each) for each in STOPS]
    steps = work(number)
    assert [next(steps), next(steps)] == ["begun", "whole"]
    with pytest.raises(KeyboardInterrupt) as error:
        next(steps)
    assert error.type is raised
    assert [signal.getsignal(each) for each in STOPS] == before


def test_a_second_signal_acts_at_once() -> None:
    """The rest of the block does not run."""
    steps = work(signal.SIGINT, signal.SIGINT)
    assert next(steps) == "begun"
    with pytest.raises(KeyboardInterrupt):
        next(steps)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_whose_exception_was_dropped_stops_later(number: int, raised: type[KeyboardInterrupt]) -> None:
    """As by the exporter of PyTorch, which runs Python from C."""
    before = {each: signal.getsignal(each) for each in STOPS}
    try:
        stop_on_signals()
        raise_if_stopped()  # nothing was received
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt) as error:
            raise_if_stopped()
        assert error.type is raised
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
