"""The service in miniature, for trying things out and for tests: ``async with emulator.serve() as service``."""

from kie_async.emulator._audio import AudioMissingError, demo_song
from kie_async.emulator._callbacks import SentCallback
from kie_async.emulator._fault_kinds import KINDS, SHAPES
from kie_async.emulator._faults import Fault, Faults
from kie_async.emulator._server import Emulator, serve
from kie_async.emulator._state import Charge, EmulatedTask, ReceivedRequest, Rules
from kie_async.emulator._submissions import TRIGGERS

__all__ = [
    "KINDS",
    "SHAPES",
    "TRIGGERS",
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
