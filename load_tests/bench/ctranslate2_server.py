"""CTranslate2 behind a grpc.aio server: what a team builds that serves it itself.

While the engine translates a batch, requests wait; what waits is its next batch. The same messages, the same process
set-up and the same weights as Heed's server has in the benchmark.
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

import ctranslate2
import grpc
from tokenizers import Tokenizer

from load_tests.bench.ctranslate2_model import max_positions, open_ctranslate2, write_ctranslate2
from load_tests.bench.translation import MAX_BATCH_SIZE, MAX_NEW_TOKENS, PRECISIONS
from proto import heed_pb2, heed_pb2_grpc

Waiting = list[tuple[list[str], asyncio.Future[list[str]]]]


class Batches:
    """Requests for one translator with one number of beams, which wait for the batch before theirs."""

    def __init__(self, translator: ctranslate2.Translator, beams: int, longest: int) -> None:
        self._translator, self._beams, self._longest = translator, beams, longest
        self._waiting: Waiting = []
        self._busy = False

    async def translate(self, source: list[str]) -> list[str]:
        """Translate the tokens of one sentence."""
        future: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._waiting.append((source, future))
        if not self._busy:
            self._busy = True
            asyncio.get_running_loop().create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH_SIZE], self._waiting[MAX_BATCH_SIZE:]
            results = await asyncio.to_thread(
                self._translator.translate_batch,
                [source for source, _ in batch],
                beam_size=self._beams,
                max_decoding_length=self._longest,
            )
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result.hypotheses[0])
        self._busy = False


class Heed(heed_pb2_grpc.HeedServicer):
    """Heed's typed call, answered by CTranslate2."""

    def __init__(self, folder: Path, models: list[str]) -> None:
        """Convert the model folder, and open it in each precision, under these names."""
        self._longest = min(MAX_NEW_TOKENS, max_positions(folder) - 1)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        with tempfile.TemporaryDirectory() as temporary:
            write_ctranslate2(folder, Path(temporary))
            self._translators = {
                model: open_ctranslate2(Path(temporary), precision)
                for precision, model in zip(PRECISIONS, models, strict=True)
            }
        self._batches: dict[tuple[str, int], Batches] = {}

    async def Translate(  # noqa: N802, the protocol's name
        self, request: heed_pb2.TranslateRequest, context: Any
    ) -> heed_pb2.TranslateResponse:
        """Translate one text."""
        key = request.model, request.num_beams or 1
        if key not in self._batches:
            self._batches[key] = Batches(self._translators[key[0]], key[1], self._longest)
        tokens = await self._batches[key].translate(self._tokenizer.encode(request.text).tokens)
        ids = [number for token in tokens if (number := self._tokenizer.token_to_id(token)) is not None]
        text = self._tokenizer.decode(ids)
        return heed_pb2.TranslateResponse(translation=text, num_tokens=len(tokens))


async def main(folder: Path, port: int, models: list[str]) -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server()
    heed_pb2_grpc.add_HeedServicer_to_server(Heed(folder, models), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")))
