"""Send a file to the service's upload host, after a check of what it is."""

from __future__ import annotations

import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import attrs

from kie_async._client.http_client import Transport
from kie_async._protocol.address_rules import check_url
from kie_async._protocol.endpoints import FilePart
from kie_async._protocol.endpoints import upload as upload_call
from kie_async._protocol.request_rules import is_url
from kie_async.errors import AudioError, BadResponseError, DownloadError
from kie_async.events import Notice, clean
from kie_async.files._audio_kinds import AUDIO_KIND_NAMES, AudioKind, kind_of
from kie_async.files._cut_off import describe_cut_off
from kie_async.files._disk import Progress, Reporter, on_disk
from kie_async.files._measure import in_turn
from kie_async.files._measure import measure as measure_file
from kie_async.models import Request, UploadedFile, UploadExtendRequest

MAX_UPLOAD = 200_000_000  # bytes; 8 min of studio wav have 140 MB


@attrs.frozen
class FileStat:
    """The state of a file at one moment; if two differ, it changed in between."""

    size: int
    modified: int
    inode: int


async def upload(
    transport: Transport,
    path: str | PathLike[str],
    *,
    progress: Progress | None = None,
    measure: bool = True,
    duration: float | None = None,
) -> UploadedFile:
    """Upload a file of audio and return where the service keeps it, for 24 hours.

    An upload costs nothing (the service says so), so one that broke off is sent again as a whole. The same file name
    would overwrite, so each upload gets a random one.

    Args:
        transport: carries it.
        path: a plain file, at most 200 MB.
        progress: called with the bytes sent and the bytes in all.
        measure: tell how long it is (``duration`` of the answer); needs the extra ``audio``.
        duration: how long it is, if that is known.

    Raises:
        AudioError: the file is no audio, or a cut-off one of which less than 2 s are left, or it changed while it was
            sent; nothing was submitted.
        StorageError: it cannot be read.
        BadResponseError: the answer is not about this file.
        KieError: what the upload itself raises.
    """
    path = Path(path)
    kind, before = await on_disk(check_source, path)
    duration = await in_turn(measure_file, path) if measure else duration
    reporter = Reporter(progress, transport.emit)
    if notice := await on_disk(describe_cut_off, path, duration):
        transport.emit(Notice("", notice, "cut_off"))
    part = FilePart(
        path=path,
        size=before.size,
        file_name=f"{secrets.token_hex(16)}{kind.suffix}",
        on_bytes=lambda sent: reporter.report(sent, before.size),
    )
    answer = await transport.send(upload_call(part))
    if await on_disk(_file_stat, path) != before:
        raise AudioError(f"{_shown(path)} changed while it was uploaded: wait until it is finished, then try again")
    check_answer(answer, before.size, allow_loopback_http=transport.settings.on_loopback)
    return attrs.evolve(answer, duration=duration)


async def upload_request(request: Request, transport: Transport) -> Request:
    """Upload a local source; the request then names its address.

    Raises:
        KieError: as ``files.upload``.
    """
    if not isinstance(request, UploadExtendRequest) or is_url(request.source):
        return request
    with source_named():
        uploaded = await upload(transport, Path(request.source), measure=False, duration=request.source_duration)
    return attrs.evolve(request, source=uploaded.download_url)


@contextmanager
def source_named() -> Iterator[None]:
    """Let what is wrong with the source of a request name this field."""
    try:
        yield
    except AudioError as error:
        error.message = f"source: {error.message}"
        raise


def check_answer(answer: UploadedFile, sent: int, *, allow_loopback_http: bool) -> None:
    """Refuse an answer that is not about the file that was sent; pure.

    Raises:
        BadResponseError: it names an address that is not fetched, or another size.
    """
    try:
        check_url(answer.download_url, allow_loopback_http=allow_loopback_http)
    except DownloadError as error:
        raise BadResponseError(f"the upload host keeps the file at an odd address: {error.message}") from None
    if answer.size is not None and answer.size != sent:
        raise BadResponseError(f"the upload host kept {answer.size} bytes of {sent}: try again", retryable=True)


def check_source(path: Path) -> tuple[AudioKind, FileStat]:
    """Check a file before it is sent; return its kind and its state. It blocks."""
    found = _file_stat(path)
    if found.size == 0:
        raise AudioError(f"{_shown(path)} is empty: give a file of audio")
    if found.size > MAX_UPLOAD:
        raise AudioError(
            f"{_shown(path)} has {found.size} bytes, over the {MAX_UPLOAD} accepted: shorten or compress it"
        )
    with path.open("rb") as file:
        kind = kind_of(file)
    if kind is None:
        raise AudioError(
            f"{_shown(path)} is no audio by its content, whatever its name says: give one of {AUDIO_KIND_NAMES}"
        )
    return kind, found


def _file_stat(path: Path) -> FileStat:
    try:
        about = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the path
        raise AudioError(f"{_shown(path)} does not exist: give the path of a file of audio") from None
    if not stat.S_ISREG(about.st_mode):
        raise AudioError(f"{_shown(path)} is no plain file: give the path of a file of audio")
    return FileStat(about.st_size, about.st_mtime_ns, about.st_ino)


def _shown(path: Path) -> str:
    return clean(path.name or str(path))
