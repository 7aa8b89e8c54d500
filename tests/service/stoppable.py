"""Engine calls that last until they are stopped, and threads that end."""

import ctypes
import threading
import time

PATIENCE_S = 20.0  # only a failing test waits so long


class StopFlag:
    """How it is stopped."""

    terminate = False


class StoppableCall:
    """Lasts until it is told to stop, and then raises; the last of its tries ends by itself."""

    def __init__(self, began: threading.Semaphore, tries: int) -> None:
        """`began` is released at the beginning of each try."""
        self.begun, self.stopped = 0, threading.Semaphore(0)
        self._began, self._tries = began, tries

    def __call__(self, told: StopFlag | None) -> str:
        """Try."""
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
    """Raise an exception in another thread, wherever it next runs Python."""
    assert thread.ident is not None
    raised = ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(error))
    assert raised == 1
