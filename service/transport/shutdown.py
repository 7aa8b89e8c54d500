"""Graceful shutdown: reports unready, drains, closes connections, all within `--drain-timeout-s`.

    SIGTERM ── unready, still answering ──> refusing, admitted requests answered ──> connections closed ──> the end
               --unready-before-drain-s     until the last one is computed           CLOSE_CONNECTIONS_S

In the first phase, load balancers notice that they should send requests elsewhere. A second signal shortens all phases.
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

REFUSING_S = 0.1  # after the start of the drain, so that arriving gRPC calls are still refused with a status
# Time for clients to read their answers after the last one is computed. Clients that have not sent their request by
# then, or do not read, cannot delay the shutdown further.
CLOSE_CONNECTIONS_S = 3.0
HURRIED_S = 0.5  # for all remaining phases, after a second signal
FORCED_S = 0.5  # for the forced closing of connections


class StopSignals:
    """Events for the first and the second SIGTERM or SIGINT of this process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Install the signal handlers."""
        self.first, self.second = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._take)

    def _take(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


class Shutdown:
    """Shuts down the HTTP and the gRPC server."""

    def __init__(
        self,
        config: ServiceConfig,
        predictor: Predictor,
        http: HttpServer,
        grpc_server: GrpcServer,
        again: asyncio.Event,
    ) -> None:
        """Begin a shutdown; the drain timeout counts from here.

        Args:
            config: time limit of each phase.
            predictor: predictor to drain.
            http: HTTP server to stop.
            grpc_server: gRPC server to stop.
            again: set by a second signal.
        """
        self._config, self._predictor, self._http, self._grpc_server = config, predictor, http, grpc_server
        self._again = again
        self.until_s = time.monotonic() + config.drain_timeout_s

    async def announce(self) -> None:
        """Report the server as unready for a while, and keep answering requests."""
        self._predictor.announce_end()
        seconds = min(self._config.unready_before_drain_s, self._config.drain_timeout_s / 2)
        log.info("unready", seconds=seconds)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._again.wait(), seconds)

    async def drain(self, http_serving: asyncio.Task[Any]) -> tuple[bool, bool]:
        """Answer the admitted requests, and close the connections.

        Returns:
            Whether all admitted requests have been computed, and whether all connections closed without force.
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
                "connections are closed by force: clients did not send their requests or did not read the answers"
            )
            self._http.force_exit = True
            await asyncio.wait([asyncio.create_task(self._grpc_server.stop(0.0)), http_serving], timeout=FORCED_S)
        return drained.done(), ended

    async def _wait(self, awaited: Awaitable[Any], at_most_s: float) -> None:
        """Wait for a task, at most `at_most_s` and not beyond the drain timeout; a second signal shortens the wait."""
        waited, hurried = asyncio.ensure_future(awaited), asyncio.create_task(self._again.wait())
        left_s = min(at_most_s, self.until_s - time.monotonic())
        await asyncio.wait([waited, hurried], timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED)
        if hurried.done() and not waited.done():
            self.until_s = min(self.until_s, time.monotonic() + HURRIED_S)
            await asyncio.wait([waited], timeout=max(0.0, self.until_s - time.monotonic()))
        hurried.cancel()

    async def _close_grpc(self) -> None:
        """Accept no more gRPC connections or calls, and return when the last call has ended.

        gRPC cancels calls that it has received but not delivered, and clients do not retry cancelled calls. For a
        moment, calls are therefore still delivered and refused with a status that clients may retry.
        """
        await asyncio.sleep(REFUSING_S)
        await self._grpc_server.stop(self._config.drain_timeout_s)
