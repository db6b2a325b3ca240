"""The source of a request on its way: measured, uploaded. What is no upload is left as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from kie_async._client import Fetcher, Transport
from kie_async._protocol.request_rules import is_url
from kie_async.events import clean
from kie_async.files._measure import measure_in_turn
from kie_async.files._measure_url import measure_url
from kie_async.files._upload import upload
from kie_async.models import Request, UploadExtendRequest
from kie_async.settings import is_loopback


async def measure_request(request: Request) -> Request:
    """Measure a local source, unless its length is given.

    Raises:
        AudioError, StorageError: it cannot be used.
        InvalidRequestError: its length does not fit the request.
    """
    if not isinstance(request, UploadExtendRequest) or is_url(request.source) or request.source_duration:
        return request
    duration = await measure_in_turn(Path(request.source))
    return attrs.evolve(request, source_duration=duration)


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
    found = await measure_url(fetcher, url)
    if found.seconds is None:
        remedy = "continue_at is not held to it: give source_duration="
        notify(f"source: the length of {clean(url)} is not known ({found.reason}); {remedy}")
    return attrs.evolve(request, source_duration=found.seconds)


async def upload_request(request: Request, transport: Transport) -> Request:
    """Upload a local source; the request then names its address.

    Raises:
        KieError: as ``files.upload``.
    """
    if not isinstance(request, UploadExtendRequest) or is_url(request.source):
        return request
    uploaded = await upload(transport, Path(request.source), measure=False)
    return attrs.evolve(request, source=uploaded.download_url)
