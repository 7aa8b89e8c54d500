"""Answers rows with a model of a running server, over its Hugging Face task API."""

import asyncio
import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from service.errors import HeedError, InvalidRequest, Unavailable
from service.offline.requests import RequestSettings, inputs_of, num_values_of
from service.offline.rows import FileRefused, Row
from service.sources.kinds import closest
from service.tasks.stored_task import StoredTask
from service.tasks.table import TASKS

CONNECTIONS = 32
TIMEOUT_S = 120.0
BUSY = (429, 503)  # worth trying again
MAX_TRIES, FIRST_PAUSE_S = 8, 0.2
JSON_HEADERS = {"content-type": "application/json"}


class RemoteModel:
    """A model of a running server."""

    def __init__(self, url: str, name: str, settings: RequestSettings) -> None:
        """Ask the server which task the model has.

        Raises:
            FileRefused: the URL is none, no server answers there, or it has no such model with a task.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise FileRefused(f"--url {url!r} is not a server's address such as http://127.0.0.1:8080")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._netloc = parts.netloc
        self._url, self._prefix, self._name = url, parts.path.rstrip("/"), name
        self._settings, self._own = settings, threading.local()
        self._threads = ThreadPoolExecutor(CONNECTIONS, "row")
        self._connections: list[http.client.HTTPConnection] = []
        self.max_in_flight = CONNECTIONS
        try:
            self.task, self.num_values = self._described()
        except FileRefused:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections, once the requests that were sent are answered."""
        self._threads.shutdown()
        for connection in self._connections:
            connection.close()

    def _described(self) -> tuple[type[StoredTask[Any]], int]:
        """Return the task of the model, and the numbers that it answers with.

        Raises:
            FileRefused: the server has no such model with a task.
        """
        status, _, body = self._send("GET", "/v2/models", None)
        try:
            models = {model["name"]: model for model in json.loads(body)["models"]}
        except (ValueError, KeyError, TypeError) as error:
            raise FileRefused(
                f"{self._url} answers {status} with no list of models; is it a server of Heed?"
            ) from error
        if self._name not in models:
            raise FileRefused(f"{self._url} has no model {self._name!r}; it has {closest(self._name, models)}")
        task = models[self._name]["task"]
        if task not in TASKS:
            reason = models[self._name]["reason"] or "it is a bare graph"
            raise FileRefused(
                f"model {self._name!r} of {self._url} has no task that a file can be answered with: {reason}"
            )
        _, _, body = self._send("GET", f"/v2/models/{quote(self._name)}", None)
        names = {output["name"] for output in json.loads(body).get("outputs", [])}
        return TASKS[task], num_values_of(names, models[self._name]["labels"])

    async def ask(self, row: Row, folder: Path) -> Any:
        """Return the task API's answer to a row; a busy server is asked again.

        Raises:
            HeedError: the row cannot be answered.
            FileRefused: the server does not answer any more.
        """
        inputs = inputs_of(row, folder, self.task.takes_files)
        body = json.dumps({"inputs": inputs, "parameters": self._settings.parameters}).encode()
        loop = asyncio.get_running_loop()
        for tried in range(1, MAX_TRIES + 1):
            path = f"/models/{quote(self._name)}"
            status, retry_after_s, answer = await loop.run_in_executor(self._threads, self._send, "POST", path, body)
            if status not in BUSY or tried == MAX_TRIES:
                break
            await asyncio.sleep(retry_after_s or FIRST_PAUSE_S * 2 ** (tried - 1))
        if status != http.HTTPStatus.OK:
            raise _error_of(status, answer, row.place)
        document = json.loads(answer)
        return document[0] if self.task.answers_lists else document

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[int, float, bytes]:
        """Send a request over this thread's connection; return status, seconds to wait before the next try, and body.

        Raises:
            FileRefused: no server answers.
        """
        for fresh in (False, True):
            connection = getattr(self._own, "connection", None)
            if fresh or connection is None:
                connection = self._own.connection = self._kind(self._netloc, timeout=TIMEOUT_S)
                self._connections.append(connection)
            try:
                connection.request(method, self._prefix + path, body, JSON_HEADERS if body else {})
                response = connection.getresponse()
                content = response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if fresh:
                    raise FileRefused(f"{self._url} does not answer: {error or type(error).__name__}") from error
            else:
                return response.status, _seconds(response.headers.get("retry-after")), content
        raise AssertionError  # the second round returns or raises


def _seconds(text: str | None) -> float:
    """Return the seconds of a Retry-After header; 0 if there are none."""
    return float(text) if text and text.isdecimal() else 0.0


def _error_of(status: int, body: bytes, place: str) -> HeedError:
    """Return the error of a response that is not 200, with the place of its row."""
    try:
        text = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        text = body[:200].decode(errors="replace")
    kind = Unavailable if status in BUSY else InvalidRequest
    return kind(f"{place}: the server answered {status}: {text}")
