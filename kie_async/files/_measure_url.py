"""How long audio at an address is, by one request for its beginning."""

from __future__ import annotations

from http import HTTPStatus
from io import BytesIO

import anyio
import attrs
from anyio import to_thread

from kie_async._client.downloads import DownloadResponse, Fetcher
from kie_async.errors import AudioError, DownloadError
from kie_async.files._containers import stated_length
from kie_async.files._kinds import M4A, WAV, audio_start, kind_of
from kie_async.files._measure import MAX_DURATION, can_measure, measure_open

MAX_BYTES = 1 << 20  # bytes that are fetched
TIMEOUT = 3.0  # seconds for all of it
_TOLERANCE = 0.25  # by how much the beginning may be denser or thinner than the whole

_NAME = "the source"


@attrs.frozen
class Measured:
    """The length of a source in seconds; or None, and why."""

    seconds: float | None
    reason: str = ""


async def measure_url(fetcher: Fetcher, url: str) -> Measured:
    """Fetch at most 1 MiB of a file within 3 s, and tell its length if that proves it; raises nothing.

    Args:
        fetcher: judges the address, and each redirect; it knows no key.
        url: where the file lies.
    """
    if not can_measure():
        return Measured(None, 'it takes PyAV to measure it: pip install "kie_async[audio]"')
    try:
        with anyio.fail_after(TIMEOUT):
            data, total = await _beginning(fetcher, url)
            if total is None:
                return Measured(None, "its host does not say how large it is")
            seconds = await to_thread.run_sync(_proven, data, total, abandon_on_cancel=True)
    except TimeoutError:
        return Measured(None, f"it was not measured within {TIMEOUT:.0f} s")
    except (DownloadError, AudioError) as error:
        return Measured(None, error.message)
    return Measured(seconds, "" if seconds else "the beginning of the file does not prove it")


async def _beginning(fetcher: Fetcher, url: str) -> tuple[bytes, int | None]:
    """The first bytes of a file, and its size if it is known."""
    data = bytearray()
    async with fetcher.open(url, limit=MAX_BYTES) as response:
        if response.start != 0 or response.encoding:
            return b"", None
        async for chunk in response:
            data += chunk
            if len(data) >= MAX_BYTES:
                break
        return bytes(data), _size(response, len(data))


def _size(response: DownloadResponse, received: int) -> int | None:
    if response.total is not None:
        return response.total if response.total >= received else None
    is_all = response.delimited and received < MAX_BYTES and response.status == HTTPStatus.OK
    return received if is_all else None


def _proven(data: bytes, total: int) -> float | None:
    """The length that the beginning of a file proves, or all of it; blocks."""
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
    """Whether what the beginning lasts makes a length likely: a header can lie, or be that of a file cut off since."""
    try:
        expected = measure_open(BytesIO(data), _NAME) * (total - start) / (len(data) - start)
    except AudioError:
        return False
    return abs(expected - seconds) <= _TOLERANCE * seconds
