"""The end of a server: unready, then drained, then its connections ended, all within `--drain-timeout-s`.

    SIGTERM ── unready, still answering ──> refusing, admitted requests answered ──> connections closed ──> the end
               --unready-before-drain-s     until the last one is computed           CLOSE_CONNECTIONS_S

Load balancers learn from the first part that they should send requests elsewhere. A second signal cuts all parts short.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable
from typing import Any

import structlog

from service.config import ServiceConfig
from service.prediction.predictor import Predictor
from service.transport.grpc.server import GrpcServer
from service.transport.http.server import HttpServer

log = structlog.get_logger("service")

REFUSING_S = 0.1  # after the start of the drain, for gRPC calls that are on their way
# After the last answer is computed, for clients to take theirs. Who has not sent its request by then, or does not read,
# does not hold up the end.
CLOSE_CONNECTIONS_S = 3.0
HURRIED_S = 0.5  # for all that is left, after a second signal
FORCED_S = 0.5  # for connections that are cut


class StopSignals:
    """SIGTERM and SIGINT of this process, the first and the second of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the signals over."""
        self.first, self.second = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._take)

    def _take(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


class Shutdown:
    """Ends the faces of a server."""

    def __init__(
        self,
        config: ServiceConfig,
        predictor: Predictor,
        http: HttpServer,
        grpc_server: GrpcServer,
        again: asyncio.Event,
    ) -> None:
        """Set up, when the end begins: the time counts from here.

        Args:
            config: with the time for each part.
            predictor: is drained.
            http: its connections are ended.
            grpc_server: the same.
            again: set when the end is asked for once more.
        """
        self._config, self._predictor, self._http, self._grpc_server = config, predictor, http, grpc_server
        self._again = again
        self.until_s = time.monotonic() + config.drain_timeout_s

    async def announce(self) -> None:
        """Be unready for a while, and answer all the same."""
        self._predictor.announce_end()
        seconds = min(self._config.unready_before_drain_s, self._config.drain_timeout_s / 2)
        log.info("unready", seconds=seconds)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._again.wait(), seconds)

    async def drain(self, http_serving: asyncio.Task[Any]) -> tuple[bool, bool]:
        """Answer what was admitted, and end the connections.

        Returns:
            whether all that was admitted has been computed, and whether all connections have ended by themselves.
        """
        log.info("draining")
        drained = asyncio.create_task(self._predictor.drain())
        self._http.stop()
        closing = asyncio.create_task(self._close_grpc())
        await self._wait(drained, self._config.drain_timeout_s)
        await self._wait(asyncio.gather(closing, http_serving, return_exceptions=True), CLOSE_CONNECTIONS_S)
        ended = closing.done() and http_serving.done()
        if not ended:
            log.warning(
                "connections are closed: their clients did not send their requests, or did not read the answers"
            )
            self._http.force_exit = True
            await asyncio.wait([asyncio.create_task(self._grpc_server.stop(0.0)), http_serving], timeout=FORCED_S)
        return drained.done(), ended

    async def _wait(self, awaited: Awaitable[Any], at_most_s: float) -> None:
        """Wait until something is done, at most this long and not beyond the end; a second signal cuts that short."""
        waited, hurried = asyncio.ensure_future(awaited), asyncio.create_task(self._again.wait())
        left_s = min(at_most_s, self.until_s - time.monotonic())
        await asyncio.wait([waited, hurried], timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED)
        if hurried.done() and not waited.done():
            self.until_s = min(self.until_s, time.monotonic() + HURRIED_S)
            await asyncio.wait([waited], timeout=max(0.0, self.until_s - time.monotonic()))
        hurried.cancel()

    async def _close_grpc(self) -> None:
        """Take no new connections or calls, and return when the last call has ended.

        gRPC cancels the calls that it has received but not handed on, which no client takes for a refusal that it may
        retry. So for a moment they are still handed on, and refused in words.
        """
        await asyncio.sleep(REFUSING_S)
        await self._grpc_server.stop(self._config.drain_timeout_s)
