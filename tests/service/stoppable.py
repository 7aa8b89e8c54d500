"""Engine calls that last until they are stopped, and threads that end."""

import ctypes
import threading
import time

PATIENCE_S = 20.0  # only a failing test waits so long


class StopFlag:
    """A flag that stops a call."""

    terminate = False


class StoppableCall:
    """A call that lasts until it is stopped, and then raises; its last attempt ends by itself."""

    def __init__(self, began: threading.Semaphore, tries: int) -> None:
        """`began` is released at the beginning of each attempt."""
        self.begun, self.stopped = 0, threading.Semaphore(0)
        self._began, self._tries = began, tries

    def __call__(self, told: StopFlag | None) -> str:
        """Make one attempt."""
        self.begun += 1
        self._began.release()
        if self.begun == self._tries:
            return "done"
        assert told is not None
        until_s = time.monotonic() + PATIENCE_S
        while not told.terminate:
            assert time.monotonic() < until_s
        self.stopped.release()
        raise RuntimeError("told to stop")


def raise_in(thread: threading.Thread, error: type[BaseException]) -> None:
    """Raise an exception in another thread when it next runs Python code."""
    assert thread.ident is not None
    raised = ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(error))
    assert raised == 1
