"""From the inputs of a request to items for the batcher, inline or in threads.

tensors ──> texts ────────> short: tokenized inline · long: tokenized in threads
├─> image files ──> decoded in threads
└─> rows of a bare model: inline · many strings: decoded in a thread
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

from service.config import ServiceConfig
from service.errors import InvalidRequest
from service.models.loading import Task
from service.prediction.messages import RequestOptions
from service.prediction.preprocessing_pool import PreprocessingPool
from service.prediction.validation import check_num_rows
from service.process.memory_budget import ByteBudget
from service.tasks.image_classification import ImageClassification
from service.tasks.image_file import DecodingMemory
from service.tasks.raw_tensors import RawTensors
from service.tasks.text_classification import TextClassification
from service.tasks.tokenization import texts_of
from service.tasks.translation import Translation
from service.tasks.translation_search import SearchRequest
from service.tensors import Arrays

# Texts of more characters in one request are tokenized in threads, so that they do not delay other requests: 2,000
# characters take about 0.5 ms, the hand-over 0.1 ms. A piece of that work ends with the text that takes it above
# PIECE_CHARACTERS; pieces that have not begun at the deadline are dropped.
LONG_TEXT_CHARACTERS, PIECE_CHARACTERS = 2_000, 8_000
# Weight of each character in a text that is not ASCII: normalization turns one into up to 18 (50 microseconds).
CHARACTER_WEIGHT = 8
# Strings of a bare model's inputs that are decoded inline; more are decoded in a thread.
MAX_STRINGS_IN_LOOP = 4_096
# Images are always decoded in threads: Pillow releases the interpreter's lock, and a large image takes hundreds of
# megabytes while it is decoded. Measured on one core: 0.03 to 0.05 ms for 32 x 32, 2 to 5 ms for 640 x 480, 14 ms for a
# JPEG of 12 megapixels and 250 ms for a WebP of that size. The length of a file does not predict its cost, and the
# hand-over of 0.1 ms is little beside the computation of an image model.

# Items for the batcher, or an awaitable of them where preprocessing runs in threads. Short texts need no await.
Prepared = list[Any] | Awaitable[list[Any]]


class Preprocessor:
    """Turns the inputs of requests into items for the batcher, within the server's limits."""

    def __init__(self, config: ServiceConfig, pool: PreprocessingPool, image_memory: ByteBudget) -> None:
        """Keep what all requests share.

        Args:
            config: limits of the server.
            pool: threads for long texts, images and many strings.
            image_memory: budget for images that are being decoded.
        """
        self._config, self._pool, self._image_memory = config, pool, image_memory

    def _timeout_s(self, options: RequestOptions) -> float:
        """Return the time that a request may take."""
        return self._config.default_timeout_s if options.timeout_s is None else options.timeout_s

    def tensors(self, task: Task, options: RequestOptions, inputs: Arrays, field: str = "") -> Prepared:
        """Preprocess named tensors.

        Args:
            task: task of the model.
            options: options of the request.
            inputs: tensors that have passed `check_inputs`.
            field: name of a text or image in error messages, `{}` its number; "text[{}]" or "image[{}]" if empty.

        Raises:
            InvalidRequest: the request has too many rows, or an input cannot be read.
        """
        if isinstance(task, RawTensors):
            return self._rows(task, options, inputs)
        if isinstance(task, ImageClassification):
            return self.images(task, options, inputs["image"].tolist(), field or "image[{}]")
        texts, field = texts_of(inputs), field or "text[{}]"
        if isinstance(task, Translation):
            return self.sentences(task, options, texts, field)
        return self.texts(task, options, texts, field)

    def texts(
        self,
        task: TextClassification | Translation,
        options: RequestOptions,
        texts: Sequence[str],
        field: str,
        **task_options: Any,
    ) -> Prepared:
        """Tokenize texts inline, or in threads where they are long.

        Args:
            task: task of the model.
            options: options of the request.
            texts: at least one.
            field: name of a text in error messages, `{}` its number.
            task_options: further arguments of the task's `preprocess_all`.

        Raises:
            InvalidRequest: the request has too many rows, or a text cannot be tokenized.
        """
        check_num_rows(len(texts), self._config.max_request_rows)
        task_options |= {"truncate": options.truncate, "field": field}
        weights = [len(text) if text.isascii() else CHARACTER_WEIGHT * len(text) for text in texts]
        if sum(weights) <= LONG_TEXT_CHARACTERS:
            return task.preprocess_all(texts, **task_options)
        return self._tokens_in_threads(task, options, texts, weights, task_options)

    def sentences(self, task: Translation, options: RequestOptions, texts: Sequence[str], field: str) -> Prepared:
        """Check the search options of a translation and tokenize its texts; arguments as for `tensors`."""
        request = SearchRequest(options.num_beams, options.max_new_tokens, options.length_penalty)
        task.check(request)
        beams, max_beams = request.num_beams or task.defaults.num_beams, self._config.max_batch_rows
        if beams > max_beams:
            raise InvalidRequest(f"num_beams is {beams}, the server's limit is {max_beams} (max_batch_rows)")
        check_num_rows(len(texts), self._config.max_request_rows, "texts", beams)
        return self.texts(task, options, texts, field, request=request)

    def images(
        self, task: ImageClassification, options: RequestOptions, images: Sequence[bytes], field: str
    ) -> Prepared:
        """Decode images in threads, in parallel; arguments as for `tensors`."""
        check_num_rows(len(images), self._config.max_request_rows)
        limit, timeout_s = self._config.max_image_pixels, self._timeout_s(options)
        memory = self.decoding_memory(time.monotonic() + timeout_s)
        decoding = [
            partial(task.preprocess, image, field=field.format(number), max_image_pixels=limit, memory=memory)
            for number, image in enumerate(images)
        ]
        return self._pool.run(decoding, rows=len(images), timeout_s=timeout_s, words=("images", "decoded"))

    def decoding_memory(self, deadline_s: float) -> DecodingMemory:
        """Return access to the image memory until a deadline on `time.monotonic()`'s clock."""
        return DecodingMemory(self._image_memory, deadline_s)

    def _rows(self, task: RawTensors, options: RequestOptions, inputs: Arrays) -> Prepared:
        """Split the tensors of a bare model into rows."""
        if sum([array.size for array in inputs.values() if array.dtype.hasobject]) > MAX_STRINGS_IN_LOOP:
            return self._rows_in_thread(task, options, inputs)
        rows = task.items(inputs)
        check_num_rows(sum([item.rows for item in rows]), self._config.max_request_rows, "rows")
        return rows

    async def _rows_in_thread(self, task: RawTensors, options: RequestOptions, inputs: Arrays) -> list[Any]:
        """Split tensors with many strings into rows; a thread decodes the strings."""
        timeout_s, words = self._timeout_s(options), ("strings", "decoded")
        (rows,) = await self._pool.run([partial(task.items, inputs)], rows=1, timeout_s=timeout_s, words=words)
        check_num_rows(sum([item.rows for item in rows]), self._config.max_request_rows, "rows")
        return rows

    async def _tokens_in_threads(
        self,
        task: TextClassification | Translation,
        options: RequestOptions,
        texts: Sequence[str],
        weights: Sequence[int],
        task_options: dict[str, Any],
    ) -> list[Any]:
        """Tokenize texts in threads, in pieces of limited weight."""
        tokenizing: list[Callable[[], list[Any]]] = []
        first, piece = 0, 0
        for number, weight in enumerate(weights, 1):
            piece += weight
            if piece > PIECE_CHARACTERS or number == len(texts):
                tokenizing.append(partial(task.preprocess_all, texts[first:number], first=first, **task_options))
                first, piece = number, 0
        timeout_s, words = self._timeout_s(options), ("texts", "tokenized")
        return list(chain(*await self._pool.run(tokenizing, rows=len(texts), timeout_s=timeout_s, words=words)))
