"""Work on the sound of audio files: compare, join, trim and read them. Needs the extra ``audio`` (PyAV and numpy)."""

from typing import TYPE_CHECKING

from kie_async._package import lazy_exports

if TYPE_CHECKING:
    from kie_async.audio._decode import AudioReader, open_reader, read_mono, read_samples
    from kie_async.audio._ending import quiet_from
    from kie_async.audio._join import SUFFIXES, Joined, check_join, join
    from kie_async.audio._levels import LevelProfile, frame_levels
    from kie_async.audio._seam import Seam
    from kie_async.audio._trim import trim
    from kie_async.audio._verdict import Verdict, can_compare, compare

__all__ = [
    "SUFFIXES",
    "AudioReader",
    "Joined",
    "LevelProfile",
    "Seam",
    "Verdict",
    "can_compare",
    "check_join",
    "compare",
    "frame_levels",
    "join",
    "open_reader",
    "quiet_from",
    "read_mono",
    "read_samples",
    "trim",
]

_NEED_THE_EXTRA = {"AudioReader", "LevelProfile", "Seam", "frame_levels", "open_reader", "read_mono", "read_samples"}

# PyAV and numpy are slow to load.
__getattr__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("AudioReader", "open_reader", "read_mono", "read_samples"), "_decode"),
        "quiet_from": "_ending",
        **dict.fromkeys(("SUFFIXES", "Joined", "check_join", "join"), "_join"),
        **dict.fromkeys(("LevelProfile", "frame_levels"), "_levels"),
        "Seam": "_seam",
        "trim": "_trim",
        **dict.fromkeys(("Verdict", "can_compare", "compare"), "_verdict"),
    },
)


def __dir__() -> list[str]:
    """The names that can be loaded, as ``pydoc`` and completion load them."""
    from kie_async.audio._verdict import can_compare

    return [name for name in __all__ if name not in _NEED_THE_EXTRA or can_compare()]
