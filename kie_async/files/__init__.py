"""Files on their way to the service and back: upload, download, and how long audio really is."""

from kie_async.files._disk import Progress, check_writable
from kie_async.files._download import Refresh, download_track
from kie_async.files._measure import measure
from kie_async.files._measure_url import measure_url
from kie_async.files._names import track_name
from kie_async.files._upload import upload

__all__ = [
    "Progress",
    "Refresh",
    "check_writable",
    "download_track",
    "measure",
    "measure_url",
    "track_name",
    "upload",
]
