"""Files on their way to the service and back: upload, download, and how long audio really is."""

from kie_async.files._disk import Progress, check_writable, on_disk
from kie_async.files._download import Refresh, download_track
from kie_async.files._kinds import AUDIO_KIND_NAMES, AUDIO_KINDS
from kie_async.files._measure import measure
from kie_async.files._measure_url import measure_url
from kie_async.files._names import safe_name, track_name
from kie_async.files._partial_file import lock, remove_parts
from kie_async.files._request_source import measure_request, measure_request_url, upload_request
from kie_async.files._upload import FileStat, check_source, upload

__all__ = [
    "AUDIO_KINDS",
    "AUDIO_KIND_NAMES",
    "FileStat",
    "Progress",
    "Refresh",
    "check_source",
    "check_writable",
    "download_track",
    "lock",
    "measure",
    "measure_request",
    "measure_request_url",
    "measure_url",
    "on_disk",
    "remove_parts",
    "safe_name",
    "track_name",
    "upload",
    "upload_request",
]
