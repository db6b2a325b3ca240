"""How long the source of a request is: a file is measured, of an address only the beginning is fetched."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import attrs
from anyio import to_thread

from kie_async._client.downloads import DownloadResponse, Fetcher
from kie_async._protocol.request_rules import is_url
from kie_async.errors import AudioError, DownloadError
from kie_async.events import clean
from kie_async.files._audio_kinds import M4A, WAV, audio_start, kind_of
from kie_async.files._measure import MAX_DURATION, NotMeasuredError, can_measure, in_turn, measure, measure_open
from kie_async.files._proven_length import stated_length
from kie_async.files._upload import check_source, source_named
from kie_async.models import Request, UploadExtendRequest
from kie_async.settings import is_loopback

MAX_BYTES = 1 << 20  # bytes that are fetched of audio at an address
TIMEOUT = 3.0  # seconds for all of it
_TOLERANCE = 0.25  # by how much the beginning may be denser or thinner than the whole
_NAME = "the source"


async def measure_request(request: Request) -> Request:
    """Measure a local source, unless its length is given.

    Raises:
        AudioError: it is not there, it is no audio, or its length cannot be told.
        StorageError: it cannot be read.
        InvalidRequestError: its length does not fit the request.
    """
    if not isinstance(request, UploadExtendRequest) or is_url(request.source) or request.source_duration:
        return request
    with source_named():
        duration = await in_turn(_measure_source, Path(request.source))
    return attrs.evolve(request, source_duration=duration)


def _measure_source(path: Path) -> float:
    check_source(path)
    return measure(path)


async def measure_request_url(request: Request, fetcher: Fetcher, notify: Callable[[str], None]) -> Request:
    """Measure a source at an address whose length nobody has told, as far as ``Settings.measure_urls`` and it allow.

    Args:
        request: ready to go out.
        fetcher: of the session.
        notify: told why the length is not known.

    Raises:
        InvalidRequestError: its length is proven, and does not fit the request.
    """
    settings = fetcher.settings
    if not isinstance(request, UploadExtendRequest) or request.source_duration or not settings.measure_urls:
        return request
    url = str(request.source)
    if settings.on_loopback and not is_loopback(urlsplit(url).hostname):
        return request  # an emulator knows of nothing but this machine
    try:
        seconds = await measure_url(fetcher, url)
    except (AudioError, DownloadError) as error:
        remedy = "continue_at is not held to it: give source_duration="
        notify(f"source: the length of {clean(url)} is not known ({error.message}); {remedy}")
        return request
    return attrs.evolve(request, source_duration=seconds)


# ------------------------------------------------------------ audio at an address


async def measure_url(fetcher: Fetcher, url: str) -> float:
    """Fetch at most 1 MiB of a file within 3 s, and return its length if that proves it.

    Args:
        fetcher: judges the address, and each redirect; it knows no key.
        url: where the file lies.

    Raises:
        AudioError, DownloadError: why the length is not known.
    """
    if not can_measure():
        raise NotMeasuredError('it takes PyAV to measure it: pip install "kie_async[audio]"')
    try:
        with anyio.fail_after(TIMEOUT):
            data, total = await _beginning(fetcher, url)
            seconds = await to_thread.run_sync(_proven, data, total, abandon_on_cancel=True)
    except TimeoutError:
        raise AudioError(f"it was not measured within {TIMEOUT:.0f} s") from None
    if seconds is None:
        raise AudioError("the beginning of the file does not prove it")
    return seconds


async def _beginning(fetcher: Fetcher, url: str) -> tuple[bytes, int]:
    """Fetch the first bytes of a file; return them, and its size."""
    data = bytearray()
    async with fetcher.open(url, limit=MAX_BYTES) as response:
        if response.start == 0 and not response.encoding:
            async for chunk in response:
                data += chunk
                if len(data) >= MAX_BYTES:
                    break
            total = _size(response, len(data))
            if total is not None:
                return bytes(data), total
    raise AudioError("its host does not say how large it is")


def _size(response: DownloadResponse, received: int) -> int | None:
    if response.total is not None:
        return response.total if response.total >= received else None
    is_all = response.delimited and received < MAX_BYTES and response.status == HTTPStatus.OK
    return received if is_all else None


def _proven(data: bytes, total: int) -> float | None:
    """Return the length that the beginning of a file proves, or that of a file which is here as a whole; blocks."""
    if len(data) == total:
        return measure_open(BytesIO(data), _NAME)
    kind, start = kind_of(BytesIO(data)), audio_start(BytesIO(data))
    if kind is None or start is None:
        return None
    seconds = stated_length(kind, data, start, total)
    if seconds is None or not 0 < seconds <= MAX_DURATION:
        return None
    if kind is M4A:
        start = data.find(b"mdat", start)
    return seconds if kind is WAV or _agrees(data, total, start, seconds) else None


def _agrees(data: bytes, total: int, start: int, seconds: float) -> bool:
    """Whether a length agrees with that of the beginning: a header may be wrong, or the file cut off behind it."""
    try:
        expected = measure_open(BytesIO(data), _NAME) * (total - start) / (len(data) - start)
    except AudioError:
        return False
    return abs(expected - seconds) <= _TOLERANCE * seconds
