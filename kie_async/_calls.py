"""The calls of a session that spend nothing: reading, uploading, downloading."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from kie_async import files
from kie_async._client import Fetcher, Transport
from kie_async._client.lifetime import Lifetime
from kie_async._client.submitter import Submitter
from kie_async._protocol import wire
from kie_async._protocol.endpoints import ROUTES, credits_left, download_url
from kie_async.errors import InvalidRequestError, KieError, Problem
from kie_async.events import Notice, Observer, clean
from kie_async.models import Credits, TaskRecord, Track, UploadedFile
from kie_async.settings import Settings


class Calls:
    """What a session does without spending; each call checks first that the session can work."""

    settings: Settings
    _emit: Observer
    _lifetime: Lifetime[Any]
    _transport: Transport
    _fetcher: Fetcher
    _submitter: Submitter

    @property
    def submissions_under_way(self) -> int:
        """How many submissions were sent and are not answered yet; closing the session waits for them."""
        submitter: Submitter | None = getattr(self, "_submitter", None)  # there is none before it is open
        return 0 if submitter is None else submitter.under_way

    async def record_info(self, task_id: str) -> TaskRecord | None:
        """Read what the service says of a task now; None if it does not know the task (yet).

        Raises:
            KieError: it could not be read.
        """
        self._check()
        return await self._transport.send(ROUTES[self.settings.route].record_info(check_task_id(task_id)))

    async def credits(self) -> Credits:
        """Read the credits left on the account.

        Raises:
            KieError: they could not be read.
        """
        self._check()
        return await self._transport.send(credits_left)

    async def upload(
        self, path: str | os.PathLike[str], *, progress: files.Progress | None = None, measure: bool = True
    ) -> UploadedFile:
        """Measure an audio file and upload it, under a random name; it costs nothing.

        Args:
            path: wav, flac, ogg, mp3 and others.
            progress: called with the bytes sent and the bytes in all.
            measure: whether its length is measured.

        Raises:
            AudioError: no audio, or its length cannot be told.
            FileError: it cannot be read, or changed meanwhile.
            KieError: the host did not take it.
        """
        self._check()
        return await files.upload(self._transport, Path(path), progress=progress, measure=measure)

    async def download(
        self,
        track: Track,
        directory: str | os.PathLike[str],
        *,
        name: str | None = None,
        keep_existing: bool = False,
        progress: files.Progress | None = None,
    ) -> Path:
        """Fetch the audio of a track into a directory and return its path; the file is whole or absent.

        Args:
            track: with an ``audio_url``.
            directory: made if absent.
            name: of the file, without its suffix; by default made from the title and the id.
            keep_existing: return a file that has the name already, and fetch nothing. By default an existing file
                is left alone, and the new one gets a number.
            progress: called with the bytes received and the bytes in all, or None if that is not known.

        Raises:
            DownloadError: it could not be fetched whole; ``NAME.part`` is kept for the next try.
            ResultExpiredError: the service no longer keeps it.
            StorageError: the disk refused.

        Cancelling keeps ``NAME.part``.
        """
        self._check()
        return await files.download_track(
            self._fetcher,
            track,
            Path(directory),
            name=name,
            keep_existing=keep_existing,
            max_bytes=self.settings.max_download_bytes,
            progress=progress,
            refresh=self._refresh(track),
        )

    async def download_url(self, url: str) -> str:
        """Ask for a direct link to a generated file; it works for 20 minutes.

        Raises:
            InvalidRequestError: no address of a generated file (422).
        """
        self._check()
        return await self._transport.send(download_url(url))

    def _refresh(self, track: Track) -> Callable[[], Awaitable[str | None]]:
        async def refresh() -> str | None:
            try:
                return await self.download_url(track.audio_url or "")
            except KieError as error:  # the link's own error says more to the user
                self._emit(Notice("", f"no new link for an expired one: {clean(str(error))}"))
                return None

        return refresh

    def _check(self) -> None:
        """Refuse before anything is sent, where the session cannot work."""
        self._lifetime.check()


def check_task_id(task_id: object) -> str:
    if not isinstance(task_id, str) or wire.TASK_ID.fullmatch(task_id) is None:
        problem = Problem("task_id", "is no id of a task", "give Task.id as it was given to you")
        raise InvalidRequestError(str(problem), problems=(problem,))
    return task_id
