"""Opening audio with PyAV (extra ``audio``), whichever of the accepted versions is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from av.container import InputContainer

_SURROGATES_SINCE = 19  # from this version on PyAV decodes texts leniently by itself, and takes no option for it


def open_audio(file: BinaryIO, demuxer: str | None = None) -> InputContainer:
    """Open a file for reading; texts in it that are not UTF-8 are no error.

    Args:
        file: at its beginning.
        demuxer: the name of the format; None lets PyAV find out.

    Raises:
        ImportError: PyAV is not installed.
        av.FFmpegError: it cannot be read.
    """
    import av  # noqa: PLC0415  # an extra, and slow to import

    major = int(av.__version__.partition(".")[0])
    options: dict[str, Any] = {} if major >= _SURROGATES_SINCE else {"metadata_errors": "replace"}
    container: InputContainer = av.open(file, "r", format=demuxer, **options)
    return container
