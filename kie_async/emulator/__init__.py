"""The service in miniature, for trying things out and for tests: ``async with emulator.serve() as service``."""

from kie_async.emulator._courier import Sent
from kie_async.emulator._emulator import Emulator, serve
from kie_async.emulator._faults import KINDS, SHAPES, Fault, Faults
from kie_async.emulator._plan import TRIGGERS
from kie_async.emulator._state import Arrival, Charge, Rules, Task
from kie_async.emulator._studio import AudioMissingError, demo_song

__all__ = [
    "KINDS",
    "SHAPES",
    "TRIGGERS",
    "Arrival",
    "AudioMissingError",
    "Charge",
    "Emulator",
    "Fault",
    "Faults",
    "Rules",
    "Sent",
    "Task",
    "demo_song",
    "serve",
]
