"""From the inputs of a request to items for the batcher, inline or in threads.

inputs ──> task.prepare ──> short: in the event loop ──────────────────────> items
                       └──> long: steps in threads, within the time left ──┘
"""

import time
from collections.abc import Awaitable, Callable
from itertools import chain
from typing import Any, TypeVar

from service.config import ServiceConfig
from service.prediction.messages import RequestOptions
from service.prediction.preprocessing_pool import PreprocessingPool
from service.process.memory_budget import ByteBudget
from service.tasks.images.image_file import DecodingMemory
from service.tasks.task import Preparation, RequestLimits, Task

T = TypeVar("T")

# Items for the batcher, or an awaitable of them where preprocessing runs in threads. Short inputs need no await.
Prepared = list[Any] | Awaitable[list[Any]]


class Preprocessor:
    """Turns the inputs of requests into items for the batcher, within the server's limits."""

    def __init__(self, config: ServiceConfig, pool: PreprocessingPool, image_memory: ByteBudget) -> None:
        """Set up with the limits and resources that all requests share.

        Args:
            config: limits of the server.
            pool: threads for long texts, images and many strings.
            image_memory: budget for images that are being decoded.
        """
        self._limits = RequestLimits(config.max_request_rows, config.max_batch_rows, config.max_image_pixels)
        self._pool, self._image_memory = pool, image_memory

    def prepare(self, task: Task[Any], options: RequestOptions, inputs: Any, field: str, deadline_s: float) -> Prepared:
        """Prepare the inputs of a request.

        Args:
            task: task of the model.
            options: options of the request.
            inputs: inputs as `task.prepare` takes them.
            field: name of an input in error messages; `{}` becomes the input's number. Empty: the task's own name.
            deadline_s: deadline on `time.monotonic()`'s clock; steps that have not begun by then are dropped.

        Raises:
            InvalidRequest: the request has too many rows, wrong options, or an input that cannot be read.
        """
        memory = self.decoding_memory(deadline_s)
        preparation = task.prepare(inputs, options, field or task.input_field, self._limits, memory)
        if preparation.inline:
            return [item for step in preparation.steps for item in step()]
        return self._run_in_threads(preparation, deadline_s)

    def decoding_memory(self, deadline_s: float) -> DecodingMemory:
        """Return access to the image memory until a deadline on `time.monotonic()`'s clock."""
        return DecodingMemory(self._image_memory, deadline_s)

    async def run_in_thread(self, work: Callable[[], T], deadline_s: float, words: tuple[str, str]) -> T:
        """Run one long step of a request in a thread.

        Args:
            work: the step.
            deadline_s: deadline on `time.monotonic()`'s clock; a step that has not begun by then is dropped.
            words: noun for what is worked on, and verb for the work, for error messages.

        Raises:
            Overloaded: too much work is waiting.
            DeadlineExceeded: the deadline passed.
        """
        timeout_s = deadline_s - time.monotonic()
        (result,) = await self._pool.run([work], rows=1, timeout_s=timeout_s, words=words)
        return result

    async def _run_in_threads(self, preparation: Preparation, deadline_s: float) -> list[Any]:
        steps, rows, _, noun, verb = preparation
        timeout_s = deadline_s - time.monotonic()
        return list(chain(*await self._pool.run(steps, rows=rows, timeout_s=timeout_s, words=(noun, verb))))
