"""What is heard in files of audio (the extra ``audio``: PyAV and numpy): whether a result holds its source."""

from typing import TYPE_CHECKING

from kie_async._package import lazy_exports

if TYPE_CHECKING:
    from kie_async.audio._decode import AudioReader, open_reader, read_mono, read_samples
    from kie_async.audio._verdict import Verdict, can_compare, compare

__all__ = ["AudioReader", "Verdict", "can_compare", "compare", "open_reader", "read_mono", "read_samples"]

# PyAV and numpy are slow to load.
__getattr__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("AudioReader", "open_reader", "read_mono", "read_samples"), "_decode"),
        **dict.fromkeys(("Verdict", "can_compare", "compare"), "_verdict"),
    },
)
