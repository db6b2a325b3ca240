"""Where the audio to be extended comes from: this emulator's own files, or another address on loopback."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from urllib.parse import unquote, urlsplit

import aiohttp

from kie_async.emulator._faults import Fault
from kie_async.emulator._hosts import host_of
from kie_async.emulator._state import State, Task
from kie_async.settings import is_loopback

PATIENCE = 30.0
MAX_BYTES = 256_000_000
KEPT = 32

_UNREACHABLE = "Failed to fetch the file. Kindly verify any access limits set by you or your service provider."
_NO_AUDIO = "Failed to parse the audio file"

logger = logging.getLogger("kie_async.emulator")


class Sources:
    """Fetches the sources of uploads, once each, and lets the tasks fail whose source is no audio.

    Args:
        own: reads a file of the emulator itself by its path below ``/files/``; None if there is none.
        measure: the length of audio in seconds, None if nobody can tell; ValueError if it is no audio.
    """

    def __init__(  # noqa: PLR0913  # it stands between all of these
        self,
        state: State,
        client: aiohttp.ClientSession,
        *,
        own: Callable[[str], Awaitable[bytes | None]],
        measure: Callable[[bytes], Awaitable[float | None]],
        clock: Callable[[], float],
        planned: Callable[[], None],
    ) -> None:
        self.base_url = ""
        self.unchecked = 0
        self._state = state
        self._client = client
        self._own = own
        self._measure = measure
        self._clock = clock
        self._planned = planned
        self._waiting: asyncio.Queue[Task] = asyncio.Queue()
        self._fetched: OrderedDict[str, bytes] = OrderedDict()
        self._lengths: dict[str, float | Fault | None] = {}

    def check(self, task: Task) -> None:
        """Look at the source of a task soon."""
        self.unchecked += 1
        self._waiting.put_nowait(task)

    async def run(self) -> None:
        """Look at sources until cancelled."""
        while True:
            task = await self._waiting.get()
            try:
                await self._check(task)
            except Exception:  # a library failed: that one task goes on unchecked, and the service goes on
                logger.exception("the source of task %s could not be checked", task.id)
            finally:
                self.unchecked -= 1
                self._planned()

    async def _check(self, task: Task) -> None:
        url = task.ask.upload_url
        if url not in self._lengths:
            self._lengths[url] = await self._judge(url)
        found = self._lengths[url]
        if isinstance(found, Fault):
            self._state.fail(task, found, self._clock())
        elif found is not None:
            self._state.source_measured(task, found, self._clock())

    async def _judge(self, url: str) -> float | Fault | None:
        content = await self.get(url)
        if content is None:
            return Fault("refused", code=451, message=_UNREACHABLE)
        try:
            return await self._measure(content)
        except ValueError:
            return Fault("failed", code=451, word="CREATE_TASK_FAILED", message=_NO_AUDIO)

    async def get(self, url: str) -> bytes | None:
        """The bytes at an address; None if it cannot be fetched. Other machines are never asked."""
        if url.startswith(f"{self.base_url}/files/"):
            return await self._own(unquote(urlsplit(url).path).removeprefix("/files/"))
        if url not in self._fetched:
            content = await self._fetch(url) if is_loopback(host_of(url)) else None
            if content is None:
                return None
            self._fetched[url] = content
            while len(self._fetched) > KEPT:
                self._fetched.popitem(last=False)
        return self._fetched[url]

    async def _fetch(self, url: str) -> bytes | None:
        content = bytearray()
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        try:
            async with self._client.get(url, allow_redirects=False, timeout=timeout) as answer:
                if answer.status != 200:  # noqa: PLR2004  # anything else is no file
                    return None
                async for block in answer.content.iter_any():
                    content += block
                    if len(content) > MAX_BYTES:
                        return None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
        return bytes(content)
