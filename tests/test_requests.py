"""What goes out, what is told, and what is refused before it costs: through the session, on loopback."""

from __future__ import annotations

import json
import logging
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from fault_server import HTML, Reply, fault_server, http
from service import Service, serving

import kie_async as kie
from kie_async import events
from kie_async._protocol.admission import Admission
from kie_async._protocol.options import RequestFields, UploadFields
from kie_async.batch._manifest_rows import COLUMNS
from kie_async.cli._options import Music
from kie_async.emulator import Fault
from kie_async.events import Event, Notice
from kie_async.journal import Job, State

pytestmark = pytest.mark.anyio

OWN: dict[str, Any] = {"model": "V5", "prompt": "la la", "style": "Classical", "title": "Longer", "continue_at": 60}
UPLOAD: dict[str, Any] = {"continue_at": 1, "source_duration": 2}


def notices(service: Service) -> list[str]:
    return [event.note for event in service.of(Notice)]


def silence(path: Path, seconds: float) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(2000)
        file.writeframes(b"\x80" * int(seconds * 2000))
    return path


async def refused(call: Any, service: Service, match: str) -> None:
    """The call is refused, and nothing was sent."""
    with pytest.raises(kie.InvalidRequestError, match=match) as caught:
        await call
    assert caught.value.problems
    assert caught.value.charged == "no"
    assert not service.emulator.arrivals


# ---------------------------------------------------------------- the service's own examples

EXTEND: dict[str, Any] = {
    "defaultParamFlag": True,
    "audioId": "e231****-****-****-****-****8cadc7dc",
    "prompt": "Extend the music with more relaxing notes",
    "style": "Classical",
    "title": "Peaceful Piano Extended",
    "continueAt": 60,
    "model": "V3_5",
    "negativeTags": "Relaxing Piano",
    "vocalGender": "m",
    "styleWeight": 0.65,
    "weirdnessConstraint": 0.65,
    "audioWeight": 0.65,
}
UPLOAD_EXTEND: dict[str, Any] = {
    **{name: value for name, value in EXTEND.items() if name != "audioId"},
    "instrumental": True,
    "personaId": "persona_123",
}


def as_fields(body: dict[str, Any]) -> dict[str, Any]:
    """The members of an example as the fields of a request."""

    def snake(name: str) -> str:
        return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)

    return {snake(name): value for name, value in body.items()}


@pytest.mark.parametrize("route", ["classic", "jobs"])
async def test_the_example_of_extend_is_sent_member_for_member(route: str) -> None:
    async with serving(callbacks=True, settings={"route": route}) as service:
        fields = as_fields(EXTEND)
        task = await service.session.extend(fields.pop("audio_id"), **fields)
        body = service.emulator.ledger[0].body
        assert body.pop("callBackUrl").startswith(f"{service.session.settings.callback_url}/")
        if route == "classic":
            assert body == EXTEND
        else:
            expected = {name: value for name, value in as_fields(EXTEND).items() if name != "default_param_flag"}
            assert body == {"model": "ai-music-api/extend", "input": {**expected, "instrumental": False}}
        assert len((await task).tracks) == 2


@pytest.mark.parametrize("route", ["classic", "jobs"])
async def test_the_example_of_upload_extend_is_sent_member_for_member(route: str, tmp_path: Path) -> None:
    async with serving(callbacks=True, settings={"route": route}) as service:
        there = await service.session.upload(silence(tmp_path / "song.wav", 70))
        task = await service.session.upload_extend(there.download_url, **as_fields(UPLOAD_EXTEND))
        body = service.emulator.ledger[0].body
        assert body.pop("callBackUrl").startswith(f"{service.session.settings.callback_url}/")
        example = {"uploadUrl": there.download_url, **UPLOAD_EXTEND}
        if route == "classic":
            assert body == example
        else:
            expected = {name: value for name, value in as_fields(example).items() if name != "default_param_flag"}
            assert body == {"model": "ai-music-api/upload-and-extend-audio", "input": expected}
        assert len((await task).tracks) == 2
        assert [note.partition(":")[0] for note in notices(service)] == ["prompt", "vocal_gender"]


async def test_without_a_callback_url_the_placeholder_alone_is_added() -> None:
    async with serving() as service:
        fields = as_fields(EXTEND)
        await service.session.extend(fields.pop("audio_id"), **fields)
        placeholder = service.emulator.ledger[0].body["callBackUrl"]
        assert service.emulator.ledger[0].body == {**EXTEND, "callBackUrl": placeholder}


# ---------------------------------------------------------------- what is only pointless


@pytest.mark.parametrize(
    ("fields", "emitted"),
    [
        ({**OWN, "instrumental": True}, ["prompt: has no effect with instrumental"]),
        ({**OWN, "default_param_flag": False}, ["continue_at", "prompt", "style", "title"]),
        ({**OWN, "persona_model": "voice_persona"}, ["persona_model: has no effect without persona_id"]),
        ({**OWN, "model": "V6", "persona_id": "p", "persona_model": "voice_persona"}, ["persona_model: is documented"]),
        ({**OWN, "model": "V4", "persona_id": "p", "persona_model": "style_persona"}, ["persona_model: is documented"]),
        ({**OWN, "negative_tags": " "}, ["negative_tags: is empty"]),
        ({**OWN, "prompt": "", "instrumental": True}, ["prompt: has no effect", "prompt: is empty"]),
        ({**OWN, "model": "V7"}, ["model: V7 is none that is known"]),
    ],
)
async def test_what_is_only_pointless_is_sent_and_told_once(fields: dict[str, Any], emitted: list[str]) -> None:
    async with serving() as service:
        for _ in range(2):
            await service.session.extend("a1", **fields)
        notes = notices(service)
        assert len(notes) == len(emitted)
        assert all(note.startswith(start) for note, start in zip(notes, emitted, strict=True))
        body = service.emulator.ledger[1].body
        sent = {"negativeTags": fields.get("negative_tags"), "prompt": fields["prompt"], "model": fields["model"]}
        assert {name: body.get(name) for name in sent} == sent


async def test_an_upload_leaves_aside_other_fields_than_a_track(tmp_path: Path) -> None:
    async with serving() as service:
        song = silence(tmp_path / "song.wav", 5)
        await service.session.upload_extend(song, **{**OWN, "continue_at": 2}, default_param_flag=False)
        assert [note.partition(":")[0] for note in notices(service)] == ["style", "title"]


async def test_the_jobs_route_knows_no_flag() -> None:
    async with serving(settings={"route": "jobs"}) as service:
        await service.session.extend("a1", model="V5", style="s", default_param_flag=False)
        assert [note.partition(";")[0] for note in notices(service)] == [
            "default_param_flag: is not known to the jobs route, where style counts"
        ]


async def test_notices_go_to_the_log_by_default(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as service:
        settings = attrs.evolve(service.session.settings, observer=events.log_event)
        with caplog.at_level(logging.WARNING, "kie_async"):
            async with kie.KieSession(settings) as session:
                await session.extend("a1", **OWN, instrumental=True)
        assert "prompt: has no effect with instrumental" in caplog.text


# ---------------------------------------------------------------- refused before spending


@pytest.mark.parametrize(
    ("code_name", "model"),
    [
        ("chirp-v3-5", "V3_5"), ("chirp-v4", "V4"), ("chirp-auk", "V4_5"), ("chirp-auk", "V4_5ALL"),
        ("chirp-bluejay", "V4_5PLUS"), ("chirp-crow", "V5"), ("chirp-fenix", "V5_5"), ("chirp-new", "V6"), (None, "V5"),
    ],
)  # fmt: skip
async def test_a_track_is_extended_by_the_model_that_made_it(code_name: str | None, model: str) -> None:
    certain = code_name in {"chirp-v3-5", "chirp-v4", "chirp-auk", "chirp-bluejay", "chirp-crow"}
    track = kie.Track("a1", model_name=code_name, duration=100.0)
    async with serving() as service:
        if certain:
            other = "V5_5" if model == "V5" else "V5"
            await refused(service.session.extend(track, model=other), service, f"model: is '{other}'; give the one")
        await service.session.extend(track, model=model)
        assert service.emulator.ledger[0].body["model"] == model
        if certain and code_name != "chirp-auk":
            await service.session.extend(track)
            assert service.emulator.ledger[1].body["model"] == model


@pytest.mark.parametrize(
    ("track", "names"),
    [
        (kie.Track("a1", model_name="chirp-auk"), r"\(chirp-auk\): V4_5 or V4_5ALL"),
        (kie.Track("a1", model_name="chirp-fenix"), "V3_5, V4"),
        ("a1", "V3_5, V4"),
    ],
)
async def test_a_model_that_nobody_can_tell_must_be_given(track: Any, names: str) -> None:
    async with serving() as service:
        await refused(service.session.extend(track), service, f"model: is missing; give the one that made.*{names}")


async def test_a_track_is_held_to_its_length() -> None:
    track = kie.Track("a1", model_name="chirp-crow", duration=100.0)
    async with serving() as service:
        await refused(
            service.session.extend(track, **{**OWN, "continue_at": 100.0}), service, "lasts 1:40: give a moment"
        )


async def test_the_id_of_a_task_is_not_that_of_a_track() -> None:
    async with serving() as service:
        task = await service.session.extend("a1", model="V5")
        service.session.track("1" * 32)
        result = await task
        with pytest.raises(kie.InvalidRequestError, match="audio_id: is the id of a task"):
            await service.session.extend(task.id, model="V5")
        with pytest.raises(kie.InvalidRequestError, match="audio_id: is the id of a task"):
            await service.session.extend("1" * 32, model="V5")
        assert len(service.emulator.arrivals) == 1
        assert notices(service) == []
        await service.session.extend("2" * 32, model="V5")
        assert notices(service) == ["audio_id: looks like the id of a task; give the id of a track (Track.id)"]
        await service.session.extend(result.tracks[0], model="V5")


def test_the_last_ten_thousand_tasks_are_remembered() -> None:
    admission = Admission(kie.Settings(api_key="k-0123456789"), lambda _: None)
    for number in range(10_001):
        admission.remember(f"t{number}")
    assert [admission.knows(task_id) for task_id in ("t0", "t1", "t10000", "t10001")] == [False, True, True, False]


async def test_the_journal_knows_the_ids_of_its_tasks(tmp_path: Path) -> None:
    async with serving() as service:
        settings = service.session.settings
        journal = kie.SQLiteJournal(tmp_path / "j.sqlite", poll=5.0)
        async with kie.KieSession(settings, journal=journal) as session:
            task = await session.extend("a1", model="V5")
            tracks = (await task).tracks
            while (job := await journal.find(task_id=task.id)) and job.state is State.SUBMITTED:
                await anyio.sleep(0.1)
        async with kie.KieSession(settings, journal=kie.SQLiteJournal(tmp_path / "j.sqlite", poll=5.0)) as session:
            with pytest.raises(kie.InvalidRequestError, match=f"one of its tracks: {tracks[0].id} or {tracks[1].id}"):
                await session.extend(task.id, model="V5")
        assert len(service.emulator.arrivals) == 1


# ---------------------------------------------------------------- a source that nobody else can reach


@asynccontextmanager
async def elsewhere(
    *replies: Reply, emitted: list[Event] | None = None, **changes: Any
) -> AsyncIterator[kie.KieSession]:
    """A session with an API that is not on loopback; a proxy on loopback keeps it from being reached."""
    async with fault_server(*(replies or (Reply((http(502, HTML),)),))) as proxy:
        observer = (lambda _: None) if emitted is None else emitted.append
        settings = kie.Settings(
            api_key="k-0123456789",
            base_url="https://api.invalid",
            proxy=proxy.url,
            observer=observer,
            submit_retry_timeout=0.0,
            **changes,
        )
        async with kie.KieSession(settings) as session:
            yield session
            assert not [asked for asked in proxy.asked if "api.invalid" not in asked.line]


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST:8000", "localhost.", "app.localhost", "127.0.0.1", "127.8.9.10", "0.0.0.0",  # noqa: S104
        "10.0.0.5", "172.16.0.1", "192.168.1.20", "169.254.169.254", "100.64.0.1", "[::1]", "[::]", "[fe80::1]",
        "[fc00::1]", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[64:ff9b::7f00:1]", "2130706433", "0x7f000001",
        "0x7f.1", "0177.0.0.1", "127.1", "127.0.0.1.", "nas", "minio:9000", "nas.local", "db.internal", "box.lan",
        "router.home.arpa", "x.test", "x.invalid", "x.onion", "user:password@127.0.0.1", "example.com@localhost",
        "%6c%6fcalhost", "10.0.0.%31", "１２７.0.0.1", "127。0。0。1", "ｌocalhost",  # noqa: RUF001  # so spelt on purpose
    ],
)  # fmt: skip
async def test_a_source_that_nobody_else_can_reach_is_refused(host: str) -> None:
    async with elsewhere() as session:
        with pytest.raises(kie.InvalidRequestError, match="source: is at an address that leads nowhere") as caught:
            await session.upload_extend(f"http://{host}/a.mp3?Signature=secret", **UPLOAD)
        assert "secret" not in str(caught.value)
        assert "password" not in str(caught.value)


@pytest.mark.parametrize("host", ["h.example", "8.8.8.8", "[2606:4700::1111]", "localhost.example", "mylocal.example"])
async def test_a_public_source_is_sent(host: str) -> None:
    async with elsewhere() as session:
        with pytest.raises(kie.ConnectError):  # the proxy refuses: it got that far
            await session.upload_extend(f"https://{host}/a.mp3", **UPLOAD)


async def test_on_loopback_a_source_may_be_there_too(tmp_path: Path) -> None:
    async with serving() as service:
        there = await service.session.upload(silence(tmp_path / "song.wav", 5))
        assert "127.0.0.1" in there.download_url
        await service.session.upload_extend(there.download_url, continue_at=2)


async def test_credentials_in_an_address_are_told_and_not_shown() -> None:
    emitted: list[Event] = []
    async with elsewhere(emitted=emitted) as session:
        with pytest.raises(kie.ConnectError):
            await session.upload_extend("https://me:hush@h.example/a.mp3", **UPLOAD)
    notes = [event.note for event in emitted if isinstance(event, Notice)]
    assert len(notes) == 1
    assert notes[0].startswith("source: holds a user name or a password; ")
    assert "hush" not in notes[0]


@pytest.mark.parametrize("url", ["https://nas.local/kie", "https://10.0.0.1/kie"])
async def test_a_callback_url_that_nobody_else_can_reach_is_told_once(url: str) -> None:
    emitted: list[Event] = []
    async with elsewhere(emitted=emitted, callback_url=url) as session:
        for _ in range(2):
            with pytest.raises(kie.ConnectError):
                await session.extend("a1", model="V5")
    notes = [event.note for event in emitted if isinstance(event, Notice)]
    assert len(notes) == 1
    assert notes[0].startswith("callback_url: leads to where the service cannot reach (")


# ---------------------------------------------------------------- where two pages disagree

BEYOND = {"prompt": "x" * 3001, "style": "x" * 201, "title": "x" * 81}


@pytest.mark.parametrize("name", BEYOND)
async def test_the_current_page_decides_and_the_older_one_is_told_once(name: str) -> None:
    fields = {**OWN, name: BEYOND[name]}
    async with serving() as service:
        for more in ("", "y"):
            await service.session.extend("a1", **{**fields, name: BEYOND[name] + more})
        (note,) = notices(service)
        assert note.startswith(
            f'{name}: is beyond a limit that has been raised; the page "Extend Music (older)" allows '
        )
        assert [event.topic for event in service.of(Notice)] == ["raised_limit"]
        strict = attrs.evolve(service.session.settings, strict_limits=True)
        async with kie.KieSession(strict) as session:
            with pytest.raises(kie.InvalidRequestError, match=f"{name}: has .*{len(BEYOND[name]) - 1}.*strict_limits"):
                await session.extend("a1", **fields)
            await session.extend("a1", **{**fields, name: BEYOND[name][:-1]})
        assert len(service.emulator.arrivals) == 3


async def test_a_source_of_over_two_minutes(tmp_path: Path) -> None:
    song = silence(tmp_path / "song.wav", 121)
    async with serving() as service:
        await service.session.upload_extend(song, continue_at=60)
        (note,) = notices(service)
        assert 'the page "Upload And Extend Audio (older)" allows 2:00' in note
        strict = attrs.evolve(service.session.settings, strict_limits=True)
        async with kie.KieSession(strict) as session:
            with pytest.raises(kie.InvalidRequestError, match=r"source: lasts 2:01; .* 2:00, and strict_limits"):
                await session.upload_extend(song, continue_at=60)
        assert len(service.emulator.arrivals) == 1


async def test_a_batch_is_held_to_the_strict_limits_before_it_spends(tmp_path: Path) -> None:
    good = Job(key="good", request=kie.ExtendRequest("a1", **OWN))
    bad = [Job(key=f"bad{n}", request=kie.ExtendRequest("a1", **{**OWN, "title": "t" * 81})) for n in range(3)]

    async def run(jobs: list[Job], settings: kie.Settings) -> list[Job]:
        journal = kie.SQLiteJournal(tmp_path / "j.sqlite", poll=5.0)
        async with kie.KieSession(settings) as session:
            return [job async for job in kie.run_batch(session, jobs, journal=journal, directory=tmp_path / "out")]

    async with serving(credits=1e6, goes_on=(1.0, 2.0)) as service:
        strict = attrs.evolve(service.session.settings, strict_limits=True)
        with pytest.raises(
            kie.ManifestError, match="the batch has 3 faults, and nothing was sent: job bad0: title"
        ) as e:
            await run([good, *bad], strict)
        assert e.value.count == 3
        assert not service.emulator.arrivals
        done = await run([good, bad[0]], service.session.settings)
        assert {job.state for job in done} == {State.DELIVERED}
        assert await run([good, bad[0]], strict) == []  # what is done is not judged anew
        assert len(service.emulator.arrivals) == 2


# ---------------------------------------------------------------- lyrics and variety


async def test_lyrics_and_variety_go_out_on_the_jobs_route(tmp_path: Path) -> None:
    song = silence(tmp_path / "song.wav", 5)
    fields: dict[str, Any] = {"continue_at": 2, "style": "s", "title": "t", "lyrics": "la", "variety": 2.0}
    async with serving(settings={"route": "jobs"}) as service:
        task = await service.session.upload_extend(song, **fields)
        asked = service.emulator.ledger[0].body["input"]
        assert (asked["lyrics"], asked["variety"], asked["model"]) == ("la", 2, "V5")
        assert "prompt" not in asked
        assert json.dumps(asked["variety"]) == "2"
        assert len((await task).tracks) == 2
        await service.session.upload_extend(song, **fields, instrumental=True)
        assert [note.partition(";")[0] for note in notices(service)] == ["lyrics: has no effect with instrumental"]


@pytest.mark.parametrize("name", ["lyrics", "variety"])
async def test_the_classic_route_does_not_know_them(name: str, tmp_path: Path) -> None:
    song = silence(tmp_path / "song.wav", 5)
    fields = {**OWN, "continue_at": 2, name: {"lyrics": "la", "variety": 3}[name]}
    async with serving() as service:
        remedy = rf'{name}: is not known to the classic route; use Settings\(route="jobs"\)'
        await refused(service.session.upload_extend(song, **fields), service, remedy)


# ---------------------------------------------------------------- a moment as it is written


@pytest.mark.parametrize(("text", "seconds"), [("75%", 7.5), ("-2.5s", 7.5), ("0:07.5", 7.5), ("-0:02.5", 7.5)])
async def test_a_moment_of_a_file_or_a_track(text: str, seconds: float, tmp_path: Path) -> None:
    async with serving() as service:
        await service.session.upload_extend(silence(tmp_path / "song.wav", 10), continue_at=text)
        track = kie.Track("a1", model_name="chirp-crow", duration=10.0)
        await service.session.extend(track, **{**OWN, "continue_at": text})
        assert [charge.body["continueAt"] for charge in service.emulator.ledger] == [seconds] * 2


async def test_a_share_of_what_nobody_measured_is_refused() -> None:
    async with serving() as service:
        remedy = "continue_at: is '75%'; the length of the source is not known: give seconds, or source_duration"
        await refused(service.session.extend("a1", **{**OWN, "continue_at": "75%"}), service, remedy)
        await refused(service.session.upload_extend("http://127.0.0.1:9/a.mp3", continue_at="75%"), service, remedy)


async def test_what_is_no_request_is_refused() -> None:
    async with serving() as service:
        fields: Any = {"audioId": "a1", "model": "V5"}
        await refused(service.session.submit(fields), service, "request: is of type dict; give an ExtendRequest")


async def test_a_batch_made_by_hand_measures_its_files(tmp_path: Path) -> None:
    song = silence(tmp_path / "song.wav", 10)
    requests = {
        "share": kie.UploadExtendRequest(song, continue_at="75%"),
        "beyond": kie.UploadExtendRequest(song, continue_at=11),
    }
    journal = kie.SQLiteJournal(tmp_path / "j.sqlite", poll=5.0)
    async with serving(goes_on=(1.0, 2.0)) as service:
        jobs = [Job(key=key, request=request) for key, request in requests.items()]
        done = {
            job.key: job
            async for job in kie.run_batch(service.session, jobs, journal=journal, directory=tmp_path / "out")
        }
        assert done["share"].state is State.DELIVERED
        assert done["beyond"].state is State.REJECTED
        assert [charge.body["continueAt"] for charge in service.emulator.ledger] == [7.5]


# ---------------------------------------------------------------- one list of fields


def test_every_field_is_an_option_a_column_and_a_keyword() -> None:
    fields = attrs.fields_dict(kie.UploadExtendRequest).keys() | attrs.fields_dict(kie.ExtendRequest).keys()
    subjects = {"audio_id", "source"}
    assert fields | {"id", "operation"} == COLUMNS
    options = {"at": "continue_at", "duration": "source_duration", "prompt_file": "prompt"}
    assert {options.get(name, name) for name in attrs.fields_dict(Music)} == fields - subjects
    assert UploadFields.__annotations__.keys() == fields - subjects
    assert RequestFields.__annotations__.keys() == attrs.fields_dict(kie.ExtendRequest).keys() - subjects


async def test_ordinary_uses_as_type_checkers_see_them() -> None:
    """What mypy and pyright must accept, a model read from elsewhere among it."""
    async with serving(faults=[Fault("code", code=402)]) as service:
        model: str = "V5"
        request = kie.ExtendRequest("a1", model=model, prompt="p", style="s", title="t", continue_at="1:05")
        requests: list[kie.Request] = [request, kie.UploadExtendRequest(Path("song.mp3"), continue_at=12)]
        assert [each.operation for each in requests] == ["extend", "upload_extend"]
        with pytest.raises(kie.InsufficientCreditsError):
            await service.session.extend("a1", model="V5_5", vocal_gender="f", style_weight=1)
        with pytest.raises(kie.InvalidRequestError):
            await service.session.upload_extend("gone.mp3", continue_at="75%", variety=2, lyrics=None)
