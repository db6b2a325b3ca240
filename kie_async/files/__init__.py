"""Files on their way to the service and back: upload, download, and how long audio really is."""

from typing import TYPE_CHECKING

from kie_async._package import lazy_exports

if TYPE_CHECKING:
    from kie_async.files._audio_kinds import AUDIO_KIND_NAMES, AUDIO_KINDS, kind_of
    from kie_async.files._cut_off import describe_cut_off
    from kie_async.files._disk import Progress, check_writable, on_disk
    from kie_async.files._download import download_track, renew_link
    from kie_async.files._measure import hash_source, in_turn, measure, open_audio
    from kie_async.files._measure_source import measure_request, measure_request_url
    from kie_async.files._names import safe_name, track_name
    from kie_async.files._partial_file import lock, remove_parts, write_new_file
    from kie_async.files._upload import FileStat, check_source, upload, upload_request

__all__ = [
    "AUDIO_KINDS",
    "AUDIO_KIND_NAMES",
    "FileStat",
    "Progress",
    "check_source",
    "check_writable",
    "describe_cut_off",
    "download_track",
    "hash_source",
    "in_turn",
    "kind_of",
    "lock",
    "measure",
    "measure_request",
    "measure_request_url",
    "on_disk",
    "open_audio",
    "remove_parts",
    "renew_link",
    "safe_name",
    "track_name",
    "upload",
    "upload_request",
    "write_new_file",
]

# A session loads them when it first has a file in hand.
__getattr__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("Progress", "check_writable", "on_disk"), "_disk"),
        "describe_cut_off": "_cut_off",
        **dict.fromkeys(("download_track", "renew_link"), "_download"),
        **dict.fromkeys(("AUDIO_KIND_NAMES", "AUDIO_KINDS", "kind_of"), "_audio_kinds"),
        **dict.fromkeys(("hash_source", "in_turn", "measure", "open_audio"), "_measure"),
        **dict.fromkeys(("measure_request", "measure_request_url"), "_measure_source"),
        **dict.fromkeys(("safe_name", "track_name"), "_names"),
        **dict.fromkeys(("lock", "remove_parts", "write_new_file"), "_partial_file"),
        **dict.fromkeys(("FileStat", "check_source", "upload", "upload_request"), "_upload"),
    },
)
