"""Download results, and resume interrupted downloads: a file is whole under its name, or it is absent.

The bytes go to ``NAME.part``. If a connection breaks, stalls or is too slow, the download is resumed where it stopped
(Range, If-Range), a bounded number of times; then the part stays for the next call. A file gets its name only if it is
proven to be whole, is audio by its content, and is as long as the service said. It is proven to be whole by the size
or the chunks of HTTP, by the size that the host names when it is asked for the bytes after the last one, or by the end
that the file itself declares.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import anyio
import attrs

from kie_async._client.downloads import DownloadResponse, Fetcher
from kie_async._client.http_client import Transport
from kie_async._protocol.backoff import backoff
from kie_async._protocol.endpoints import download_url
from kie_async.errors import AudioError, DownloadError, KieError, ResultExpiredError, StorageError
from kie_async.events import Notice, Retrying, clean
from kie_async.files._audio_kinds import HEAD, AudioKind, begins_like_audio
from kie_async.files._disk import Progress, Reporter, logger, on_disk
from kie_async.files._measure import NotMeasuredError, in_turn, measure
from kie_async.files._names import safe_name, track_name
from kie_async.files._partial_file import PartialFile, ResumeInfo
from kie_async.models import Track

Refresh: TypeAlias = Callable[[], Awaitable[str | None]]  # gives a new address for an expired one

EXCHANGES = 8  # for one file in one call: the first and its resumptions
DURATION_TOLERANCE = 2.0  # seconds between the record's word and the file
MIN_SPEED = 1000  # bytes/s, over ``SPEED_WINDOW`` seconds of waiting
SPEED_WINDOW = 30.0
_BLOCK = 1 << 20  # bytes per trip to the disk
_SPARE = 1 << 20  # bytes of the disk that a download leaves free


async def download_track(  # noqa: PLR0913  # keyword-only but for the subject
    fetcher: Fetcher,
    track: Track,
    directory: str | PathLike[str],
    *,
    name: str | None = None,
    keep_existing: bool = False,
    progress: Progress | None = None,
    task_id: str | None = None,
    refresh: Refresh | None = None,
) -> Path:
    """Download a track into a directory, which is made if need be, and return the path of the file.

    It tries ``audio_url`` first and ``source_audio_url`` next. The address of a stream is never used, because it stops
    working (the service says so). With the extra ``audio``, a file that is more than 2 s shorter than
    ``track.duration`` is refused, and a notice emitted of one that is longer.

    Args:
        fetcher: carries it; its settings say how large a file may be.
        track: what to download.
        directory: where it goes.
        name: of the file; made safe, and given the suffix of its content. By default it is made from the title and
            the id.
        keep_existing: return a file that has the name already. By default an existing file is left alone, and the new
            one gets a number.
        progress: called with the bytes so far and the bytes in all (None if unknown).
        task_id: for errors.
        refresh: asked once for a new address, should this one have expired.

    Raises:
        ResultExpiredError: the file is gone, and ``refresh`` knew no other address.
        DownloadError: it has no audio yet, could not be fetched whole, or is not what it should be; what is good of it
            is kept in ``NAME.part``, and the next call resumes it.
        StorageError: the disk refused; ``NAME.part`` is kept.

    Cancelling keeps ``NAME.part`` too.
    """
    stem = safe_name(name) if name else track_name(track.title, track.id)
    urls = list(dict.fromkeys(url for url in (track.audio_url, track.source_audio_url) if url))
    taken: list[PartialFile] = []  # filled by the thread, so that a part is released even if its opening was cancelled

    def take() -> None:
        taken.append(part := PartialFile.open(Path(directory), stem))
        if keep_existing and part.finished_path is None:
            part.finished_path = part.yield_to_existing()

    try:
        if not urls:
            raise DownloadError("the track has no audio yet: wait for its task")
        await on_disk(take)
        (part,) = taken
        download = _Download(
            fetcher=fetcher,
            part=part,
            expected_duration=track.duration,
            keep_existing=keep_existing,
            reporter=Reporter(progress, fetcher.emit, task_id or ""),
            refresh=refresh,
        )
        return part.finished_path or await download.run(urls)
    except KieError as error:
        error.task_id = error.task_id or task_id
        raise
    finally:
        for part in taken:
            if not part.is_released:
                await on_disk(part.release)


async def renew_link(transport: Transport, track: Track) -> str | None:
    """Ask for a new link to the audio of a track whose own has expired; None, and a notice, if there is none."""
    try:
        return await transport.send(download_url(track.audio_url or ""))
    except KieError as error:  # the link's own error says more to the user
        transport.emit(Notice("", f"no new link for an expired one: {clean(str(error))}"))
        return None


@attrs.define
class _MinimumSpeed:
    """Measures the time spent waiting for the network alone, and gives up on a host that is too slow."""

    _since: float
    _waited: float = 0.0
    _came: int = 0

    def count(self, size: int) -> None:
        self._came += size
        self._waited += anyio.current_time() - self._since
        if self._waited < SPEED_WINDOW:
            return
        if self._came < MIN_SPEED * self._waited:
            raise DownloadError(f"the host sent less than {MIN_SPEED} bytes/s for {SPEED_WINDOW:.0f} s")
        self._waited, self._came = 0.0, 0

    def resume(self) -> None:
        self._since = anyio.current_time()


@attrs.define(kw_only=True)
class _Download:
    """The download of one file into one part, and what the file must be."""

    fetcher: Fetcher
    part: PartialFile
    expected_duration: float | None
    keep_existing: bool
    reporter: Reporter
    refresh: Refresh | None

    async def run(self, urls: Sequence[str]) -> Path:
        """Try the addresses in their order, then a new one if one of them has expired."""
        errors: list[DownloadError] = []
        for url in urls:
            try:
                return await self._from(url)
            except DownloadError as error:
                errors.append(error)
        if self.refresh is not None and any(isinstance(error, ResultExpiredError) for error in errors):
            renewed = await self.refresh()
            if renewed:
                return await self._from(renewed)
        raise next((error for error in errors if error.retryable), errors[0])

    async def _from(self, url: str) -> Path:
        """Fetch from one address, in at most ``EXCHANGES`` exchanges."""
        for attempt in range(1, EXCHANGES):
            try:
                return await self._try(url)
            except DownloadError as error:
                if not error.retryable:
                    raise
                reason = str(error)
            delay = backoff(attempt, random.random)
            self.fetcher.emit(Retrying("download", reason, attempt, delay))
            await anyio.sleep(delay)
        return await self._try(url)

    async def _try(self, url: str) -> Path:
        is_whole = await self._exchange(url)
        kind, seconds = await (in_turn if self.expected_duration else on_disk)(self._inspect)
        if kind is None:
            raise await self._discard("what came is no audio")
        if not is_whole:
            await self._prove(url, kind)
        self._check_duration(seconds)
        return await on_disk(lambda: self.part.finish(kind.suffix, keep_existing=self.keep_existing))

    async def _exchange(self, url: str) -> bool:
        """Fetch what is missing; tell whether HTTP proves that it is all there."""
        source, info, start, validator = _source(url), self.part.resume_info, 0, None
        if info is not None and info.source == source and info.validator is not None:
            start, validator = self.part.size, info.validator
        async with self.fetcher.open(url, start=start, validator=validator) as response:
            if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                if not self.part.size or response.total != self.part.size:
                    raise await self._discard("the host has less of the file than is here", retryable=True)
                return True
            self._check_promise(response)
            anew = ResumeInfo(source, response.validator, response.total) if response.start == 0 else None
            if anew is None and (response.start != start or not _same(response.total, info)):
                raise await self._discard("the host went on elsewhere, or in another file", retryable=True)
            await on_disk(self._begin, anew, response.total)
            await self._stream(response)
        is_whole = response.status == HTTPStatus.OK and response.delimited
        return await self._check_size(self._total(response)) or is_whole

    async def _prove(self, url: str, kind: AudioKind) -> None:
        """Prove that the file is whole, where the body ended with the connection, as an interrupted one does too."""
        if await self._check_size(await self._size_at_host(url)):
            return
        is_complete = await on_disk(self.part.is_complete, kind)
        if is_complete is None:
            raise DownloadError(
                "the host tells no size, and neither does the file: nothing proves that all of it came; what did is "
                f"kept in {self.part.path.name}",
                retryable=False,
            )
        if not is_complete:
            raise DownloadError(f"the download broke off after {self.part.size} bytes: the file declares more")

    async def _size_at_host(self, url: str) -> int | None:
        """Ask for the bytes after the last one here, and return the size that the host names; None if it names none."""
        validator = self.part.resume_info.validator if self.part.resume_info else None
        try:
            async with self.fetcher.open(url, start=self.part.size, validator=validator) as response:
                return response.total
        except DownloadError:
            return None

    def _check_promise(self, response: DownloadResponse) -> None:
        if response.encoding:
            raise DownloadError(f"the host sent the file encoded ({response.encoding[:20]})", retryable=False)
        limit = self.fetcher.settings.max_download_bytes
        if response.total is not None and response.total > limit:
            words = f"the file has {response.total} bytes, over the {limit} accepted"
            raise DownloadError(words, retryable=False)

    def _begin(self, anew: ResumeInfo | None, total: int | None) -> None:
        """Empty the part if the download begins anew, and check that the disk has room for the rest; blocks."""
        if anew is not None:
            self.part.restart(anew)
        missing = max((total or 0) - self.part.size, 0)
        if missing + _SPARE > self.part.free_space():
            raise StorageError(f"the disk has no room for the {missing} bytes to come: make room")

    async def _stream(self, response: DownloadResponse) -> None:
        """Write the body to the part. If the connection breaks, what aiohttp still holds is fetched again."""
        pieces, held = list[bytes](), 0
        speed = _MinimumSpeed(anyio.current_time())
        try:
            async for piece in response:
                speed.count(len(piece))
                self._check_cap(held + len(piece))
                pieces.append(piece)
                held += len(piece)
                if held >= _BLOCK:
                    block, pieces, held = pieces, [], 0
                    await self._write(block)
                self.reporter.report(self.part.size + held, response.total)
                speed.resume()
        except BaseException:
            with suppress(StorageError):  # the error that ended it is the one to tell
                await on_disk(self.part.append, *pieces)
            raise
        await self._write(pieces)

    def _check_cap(self, more: int) -> None:
        limit = self.fetcher.settings.max_download_bytes
        if self.part.size + more > limit:
            raise DownloadError(f"the file goes on beyond the {limit} bytes accepted", retryable=False)

    async def _write(self, pieces: Sequence[bytes]) -> None:
        if self.part.size == 0:
            head = b"".join(piece[:HEAD] for piece in pieces[:HEAD])[:HEAD]
            if len(head) == HEAD and not begins_like_audio(head):
                raise await self._discard("what came is no audio")
        await on_disk(self.part.append, *pieces)

    def _total(self, response: DownloadResponse) -> int | None:
        """Return the size of the whole file, as this response or the one that it continues has named it."""
        return self.part.resume_info.total if response.total is None and self.part.resume_info else response.total

    async def _check_size(self, total: int | None) -> bool:
        """Compare the part with the size of the whole file; return whether that size is known."""
        if self.part.size == 0:
            raise DownloadError("the host sent an empty file")
        if total is None:
            return False
        if self.part.size > total:
            raise await self._discard(f"the host sent more than the {total} bytes of the file", retryable=True)
        if self.part.size < total:
            raise DownloadError(f"the download broke off at {self.part.size} of {total} bytes")
        return True

    def _inspect(self) -> tuple[AudioKind | None, float | AudioError | None]:
        """Return the kind of the audio and, if its length is to be checked, the length or why it is damaged; blocks."""
        kind = self.part.kind()
        if kind is None or not self.expected_duration:  # the service also says 0 for what it does not know
            return kind, None
        try:
            return kind, measure(self.part.path)
        except NotMeasuredError as error:
            logger.debug("the duration of a download is not checked: %s", error)
            return kind, None
        except AudioError as error:
            return kind, error

    def _check_duration(self, seconds: float | AudioError | None) -> None:
        """Refuse a file that is damaged, or shorter than the record says; one that is longer lacks nothing."""
        if isinstance(seconds, AudioError):
            words = f"what came is damaged, though all of it came; it is kept in {self.part.path.name}"
            raise DownloadError(words, retryable=False) from seconds
        expected = self.expected_duration or 0.0
        if seconds is None or abs(seconds - expected) <= DURATION_TOLERANCE:
            return
        words = f"what came lasts {seconds:.1f} s, and should last {expected:.1f} s"
        if seconds < expected:
            raise DownloadError(f"{words}; it is kept in {self.part.path.name}", retryable=False)
        self.reporter.notify(f"{self.part.stem}: {words}")

    async def _discard(self, words: str, *, retryable: bool = False) -> DownloadError:
        """Empty the part, so that its bytes are not resumed; return the error to raise."""
        await on_disk(self.part.restart, ResumeInfo("", None, None))
        return DownloadError(words, retryable=retryable)


def _source(url: str) -> str:
    """Return a hash of an address without its query, which holds signatures and changes with each of them."""
    return hashlib.sha256(url.partition("?")[0].encode("utf-8", "replace")).hexdigest()


def _same(total: int | None, info: ResumeInfo | None) -> bool:
    """Whether a size can be that of the file that was begun; a size that is not known can be any."""
    return total is None or info is None or info.total in {None, total}
