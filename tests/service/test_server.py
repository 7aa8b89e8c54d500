"""The parts of the server that need no socket."""

import asyncio
from pathlib import Path

from service.app import build
from service.config import ServiceConfig
from service.server import run_until, welcome
from tests.service.held_engine import held_app


async def test_the_greeting_shows_a_request_that_can_be_tried(tmp_path: Path) -> None:
    """The request is for a model that is ready."""
    async with held_app(tmp_path / "one", "texts") as (app, _):
        greeting = welcome("http://127.0.0.1:1", "127.0.0.1:2", app.predictor)
    assert greeting.splitlines() == [
        "HTTP  http://127.0.0.1:1  (in a browser; API: http://127.0.0.1:1/docs)",
        "gRPC  127.0.0.1:2",
        "Try:",
        """  curl http://127.0.0.1:1/models/texts -d '{"inputs": "A wonderful film."}'""",
    ]


async def test_the_greeting_of_an_empty_store_shows_the_addresses(tmp_path: Path) -> None:
    """There is nothing to try."""
    app = build(ServiceConfig(model_store=tmp_path), num_cores=1)
    async with app.running():
        assert len(welcome("http://127.0.0.1:1", "127.0.0.1:2", app.predictor).splitlines()) == 2


async def test_background_work_ends_when_the_server_stops() -> None:
    """It is cancelled, whatever it does."""
    stop, began, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def end_when_begun() -> None:
        await began.wait()
        stop.set()

    ending = asyncio.create_task(end_when_begun())
    await run_until(asyncio.create_task(stop.wait()), work())
    await ending
    await asyncio.wait_for(ended.wait(), 10)
