"""Requests that start on schedule."""

import gevent
import pytest
from gevent.event import Event

from load_tests.ci.arrivals import send_on_schedule


def test_a_server_that_does_not_answer_does_not_slow_the_arrivals() -> None:
    """All requests start before the first is answered, each due at its own time."""
    due_s: dict[int, float] = {}
    all_sent = Event()

    def send(number: int, due: float) -> None:
        due_s[number] = due
        if len(due_s) == 20:
            all_sent.set()
        all_sent.wait(timeout=30)

    def give_up(number: int, due: float) -> None:
        raise AssertionError(f"{number} was given up")

    send_on_schedule(20, 2000.0, 20, send, give_up)
    assert all_sent.is_set()
    assert [due_s[number] - due_s[0] for number in range(20)] == pytest.approx([number / 2000 for number in range(20)])


def test_late_requests_are_sent_at_once_and_keep_their_due_time() -> None:
    """After the clock jumps by a second nothing is skipped, and the schedule stays."""
    now_s, due_s = 0.0, []

    def send(number: int, due: float) -> None:
        nonlocal now_s
        now_s += 1.0 if number == 0 else 0.0
        due_s.append(due)

    send_on_schedule(4, 10.0, 4, send, send, clock=lambda: now_s)
    assert due_s == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_requests_beyond_the_in_flight_limit_are_given_up() -> None:
    """Two wait for an answer that comes after the last request was given up."""
    sent, given_up, answer = [], [], Event()

    def send(number: int, due: float) -> None:
        sent.append(number)
        answer.wait(timeout=30)

    def give_up(number: int, due: float) -> None:
        given_up.append(number)
        if number == 4:
            answer.set()

    gevent.spawn(send_on_schedule, 5, 1000.0, 2, send, give_up).get(timeout=30)
    assert (sent, given_up) == ([0, 1], [2, 3, 4])
