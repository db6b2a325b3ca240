"""What is served under ``/files/``: uploads, and tracks that are made when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from kie_async.emulator import _bodies
from kie_async.emulator._files import IMAGE, Uploads, part, read_base64, read_multipart, refused
from kie_async.emulator._sources import Sources
from kie_async.emulator._state import State, Task
from kie_async.emulator._studio import AudioMissingError, Studio

KEPT_FOR = 14 * 86400.0  # FACTS §8: seconds that generated audio is kept
LINK_FOR = 20 * 60.0  # FACTS §8: seconds that a direct link is good for
STREAM_FOR = 60.0  # seconds after which a stream address decays to nothing; the real time is not known


class Library:
    """Gives out files, and takes in uploads."""

    def __init__(self, state: State, studio: Studio, clock: Callable[[], float]) -> None:
        self.base_url = ""
        self.sources: Sources | None = None
        self.uploads = Uploads()
        self._state = state
        self._studio = studio
        self._clock = clock

    # ------------------------------------------------------------ uploads

    async def take_form(self, request: web.Request) -> dict[str, Any]:
        """Take an upload as a multipart form."""
        try:
            content, texts = await read_multipart(request)
        except ValueError as error:
            return refused(str(error))
        return self._take(content, texts)

    def take_base64(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Take an upload as base64."""
        try:
            content = read_base64(body.get("base64Data"))
        except ValueError as error:
            return refused(str(error))
        return self._take(content, body)

    async def take_url(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Take an upload from an address, on loopback."""
        content = await self._fetch(str(body.get("fileUrl")))
        return refused("Failed to download file") if content is None else self._take(content, body)

    def _take(self, content: bytes, texts: Mapping[str, Any]) -> dict[str, Any]:
        folder, name = str(texts.get("uploadPath") or "uploads"), str(texts.get("fileName") or "file")
        return self.uploads.put(content, folder, name, self.base_url)

    async def _fetch(self, url: str) -> bytes | None:
        return await self.sources.get(url) if self.sources else None

    # ------------------------------------------------------------ files

    async def give(self, request: web.Request, *, whole: bool) -> web.Response:
        """Answer a download; ``whole``: whatever the Range."""
        path = request.match_info["path"]
        if self._has_expired(request.query.get("until", "inf")):
            return web.Response(status=403, text="the link has expired")
        try:
            content = await self.read(path)
        except AudioMissingError as error:
            return web.Response(status=501, text=str(error))
        if content is None:
            return web.Response(status=404, text="no such file")
        kind = "image/jpeg" if path.endswith(".jpeg") else "audio/mpeg"
        headers = {} if whole else request.headers
        return part(headers, content, f'"{hashlib.blake2b(content, digest_size=16).hexdigest()}"', kind)

    def _has_expired(self, until: str) -> bool:
        try:
            return float(until) < self._clock()
        except ValueError:  # no link of ours
            return True

    async def read(self, path: str) -> bytes | None:
        """The file at a path below ``/files/``; None if there is none, or none yet, or none any more."""
        upload = self.uploads.get(path)
        if upload is not None:
            return upload
        name, _, ending = path.removeprefix("stream/").partition(".")
        found = self._state.track(name)
        if found is None or ending not in {"", "mp3", "jpeg"}:
            return None
        if ending == "jpeg":
            return IMAGE
        return await (self._finished(*found) if ending else self._stream(*found))

    async def _finished(self, task: Task, index: int) -> bytes | None:
        now = self._clock()
        seen = _bodies.view(task, now)
        if seen is None or index >= seen.ready or not seen.audio or now > task.at + task.plan.end + KEPT_FOR:
            return None
        return await self.audio(task, index)

    async def _stream(self, task: Task, index: int) -> bytes | None:
        now = self._clock()
        seen = _bodies.view(task, now)
        if seen is None or not seen.listed:
            return None
        decayed = now > task.at + task.plan.complete + STREAM_FOR / self._state.pace.speed
        return b"" if decayed else await self.audio(task, index)

    def link(self, url: str) -> str | None:
        """A direct link to a generated file, good for a while; None for any other address."""
        path = url.removeprefix(f"{self.base_url}/files/").partition("?")[0]
        if not url.startswith(f"{self.base_url}/files/") or self._state.track(path.removesuffix(".mp3")) is None:
            return None
        return f"{self.base_url}/files/{path}?{urlencode({'until': self._clock() + LINK_FOR})}"

    # ------------------------------------------------------------ audio

    async def audio(self, task: Task, index: int) -> bytes:
        """The audio of a track, made now if it is not kept.

        Raises:
            AudioMissingError: the extra ``kie_async[audio]`` is not installed.
        """
        name = task.track_ids[index]
        kept = self._studio.kept(name)
        if kept is not None:
            return kept
        source = await self._source(task)
        return await self._studio.continued(
            name, source, start=task.start, seconds=task.plan.durations[index], take=index
        )

    async def _source(self, task: Task) -> bytes | str:
        """The audio that a task continues, or the name of a song that nobody has."""
        if task.ask.operation == "upload_extend":
            content = await self._fetch(task.ask.upload_url)
        elif parent := self._state.track(task.ask.audio_id):
            content = await self.audio(*parent)
        else:
            content = None
        return content if content is not None else task.ask.audio_id or task.ask.upload_url
