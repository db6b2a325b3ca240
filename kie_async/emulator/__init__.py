"""The service in miniature, for trials and tests: ``async with emulator.serve() as service``."""

from kie_async.emulator._bodies import SHAPES
from kie_async.emulator._callbacks import SentCallback
from kie_async.emulator._faults import KINDS, Fault
from kie_async.emulator._files import AudioMissingError, demo_song
from kie_async.emulator._refusals import TRIGGERS
from kie_async.emulator._server import Emulator, serve
from kie_async.emulator._state import Faults, Rules
from kie_async.emulator._tasks import Answers, Charge, EmulatedTask, ReceivedRequest

__all__ = [
    "KINDS",
    "SHAPES",
    "TRIGGERS",
    "Answers",
    "AudioMissingError",
    "Charge",
    "EmulatedTask",
    "Emulator",
    "Fault",
    "Faults",
    "ReceivedRequest",
    "Rules",
    "SentCallback",
    "demo_song",
    "serve",
]
