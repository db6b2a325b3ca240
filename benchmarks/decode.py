"""Bodies of the service to values: what reading them costs beside JSON alone, and beside pydantic and msgspec.

Two recorded bodies of ``tests/samples``, without the layout of the samples: record-info of a finished task, and its
last callback. The models of pydantic and msgspec are made from ours and hold the same fields. They do less: ours reads
keys in both spellings, numbers and codes as text, dates as milliseconds or text (msgspec leaves them numbers), and
nulls and absent keys anywhere. A callback is read by the standard library with or without orjson, for it must be seen
if a key of it is written twice; its tracks are read only when they are asked for, which is a row of its own.

A figure is the quickest of many short runs, taken by turns, for those are the ones that nothing disturbed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import GenericAlias
from typing import Any, get_type_hints
from unittest import mock

from benchmarks._report import table, versions
from kie_async._protocol import json_values, wire
from kie_async.models import TaskRecord, Track

SAMPLES = Path(__file__).parent.parent / "tests" / "samples"
NAMES = {"created_at": "create_time", "completed_at": "complete_time"}
CHUNK = 20  # bodies in one run

Read = Callable[[bytes], object]
Readers = dict[str, Read]  # by the name of a body


def body_of(sample: str) -> bytes:
    """A recorded body as it was sent."""
    value = json.loads((SAMPLES / sample).read_bytes())
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


BODIES = {
    "record-info": body_of("record_info_success.reported.json"),
    "callback": body_of("callback_complete.captured.json"),
}


def json_alone() -> Readers:
    """The standard library; the others are compared with it."""
    return dict.fromkeys(BODIES, json.loads)


def orjson_alone() -> Readers:
    """What the extra "speed" brings."""
    return dict.fromkeys(BODIES, importlib.import_module("orjson").loads)


def ours() -> Readers:
    """What a poll does with an answer, and a receiver with a callback."""
    return {
        "record-info": lambda body: wire.read_record(wire.read_envelope(body).data),
        "callback": wire.read_callback,
    }


def ours_with_tracks() -> Readers:
    """A callback and its tracks."""
    return {"callback": lambda body: wire.read_callback(body).tracks}


def pydantic_models() -> Readers:
    """Models of the same shape made with pydantic; they too take both spellings."""
    pydantic: Any = importlib.import_module("pydantic")
    camel = importlib.import_module("pydantic.alias_generators").to_camel
    config = {"alias_generator": camel, "populate_by_name": True, "frozen": True}

    def model(name: str, **fields: Any) -> Any:  # noqa: ANN401  # types, and a class made of them
        return pydantic.create_model(name, __config__=config, **{key: (kind, None) for key, kind in fields.items()})

    tracks = _list_of(model("Track", **fields_of(Track)))
    response = model("Response", task_id=str, suno_data=tracks)
    record = model("Record", response=response | None, **fields_of(TaskRecord))
    event = model("Event", callback_type=str, task_id=str, data=tracks)
    return {
        "record-info": model("Response", code=int, msg=str, data=record | None).model_validate_json,
        "callback": model("Callback", code=int, msg=str, data=event | None).model_validate_json,
    }


def msgspec_structs() -> Readers:
    """Structs of the same shape made with msgspec; each takes one spelling, and dates stay numbers."""
    msgspec: Any = importlib.import_module("msgspec")
    moments = {"created_at": float | str | None, "completed_at": float | str | None}

    def struct(name: str, spelling: str | None, **fields: Any) -> Any:  # noqa: ANN401  # likewise
        members = [(key, kind, None) for key, kind in fields.items()]
        return msgspec.defstruct(name, members, rename=spelling, frozen=True)

    track, snake_track = (struct("Track", spelling, **fields_of(Track, **moments)) for spelling in ("camel", None))
    response = struct("Response", "camel", task_id=str, suno_data=_list_of(track))
    record = struct("Record", "camel", response=response | None, **fields_of(TaskRecord, **moments))
    event = struct("Event", None, callbackType=str, task_id=str, data=_list_of(snake_track))
    return {
        name: msgspec.json.Decoder(struct("Envelope", None, code=int, msg=str, data=kind | None)).decode
        for name, kind in (("record-info", record), ("callback", event))
    }


def fields_of(cls: type[object], **instead: object) -> dict[str, Any]:
    """The names and types of a model of ours, dates under the service's names; the tracks stand in its response."""
    hints = {**get_type_hints(cls), **instead}
    return {NAMES.get(name, name): kind for name, kind in hints.items() if name != "tracks"}


def _list_of(kind: Any) -> Any:  # noqa: ANN401  # types made at run time
    return GenericAlias(list, (kind,)) | None


SUBJECTS: dict[str, Callable[[], Readers]] = {
    "json alone": json_alone,
    "orjson alone": orjson_alone,
    "kie_async, without orjson": ours,
    "kie_async, with orjson": ours,
    "kie_async, with the tracks": ours_with_tracks,
    "pydantic": pydantic_models,
    "msgspec": msgspec_structs,
}


def readers() -> dict[str, Readers]:
    """All that can be measured here; nothing stands for a package that is not installed."""
    found: dict[str, Readers] = {}
    for name, make in SUBJECTS.items():
        try:
            found[name] = make()
        except ImportError:
            found[name] = {}
    return found


def measure(body: str, subjects: dict[str, Read], runs: int) -> dict[str, float]:
    """Microseconds for one body in each subject's quickest run."""
    best = dict.fromkeys(subjects, float("inf"))
    for _ in range(runs):
        for name, read in subjects.items():
            with mock.patch.object(json_values, "orjson", None) if "without" in name else nullcontext():
                best[name] = min(best[name], _time(read, BODIES[body]))
    return best


def _time(read: Read, body: bytes) -> float:
    started = time.perf_counter()
    for _ in range(CHUNK):
        read(body)
    return (time.perf_counter() - started) / CHUNK * 1e6


def rows(runs: int) -> Iterator[tuple[str, ...]]:
    """The table: the body and who reads it, µs, and the ratio to JSON alone."""
    everybody = readers()
    for body, text in BODIES.items():
        subjects = {name: known[body] for name, known in everybody.items() if body in known}
        last_track = text.rpartition(b'"id":"')[2].partition(b'"')[0].decode()
        assert all(last_track in repr(_with_tracks(read(text))) for read in subjects.values())
        taken = measure(body, subjects, runs)
        for name in subjects:
            yield f"{body}: {name}", f"{taken[name]:.1f}", f"{taken[name] / taken['json alone']:.2f}"
    yield from ((name, "not installed", "") for name, known in everybody.items() if not known)


def _with_tracks(value: object) -> object:
    return getattr(value, "tracks", value)


def main(arguments: list[str]) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks decode", description=__doc__)
    parser.add_argument("--runs", type=int, default=2000, help=f"of {CHUNK} bodies each")
    options = parser.parse_args(arguments)
    print(versions("attrs", "orjson", "pydantic", "msgspec"))
    table(("body and reader", "µs", "to json alone"), rows(options.runs))
    return 0
