"""A song is extended until it is long enough: what is paid, what stays after a failure, and where it ends."""

from __future__ import annotations

import asyncio
import importlib.util
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from command_line import short_song
from service import Service, serving

import kie_async as kie
from kie_async import batch, emulator
from kie_async.emulator import Fault
from kie_async.events import Notice
from kie_async.journal import Job, SQLiteJournal, State

pytestmark = pytest.mark.anyio
TRACK = kie.Track("a1", duration=30.0)
OWN: dict[str, Any] = {"style": "folk", "title": "Longer", "instrumental": True}


@pytest.fixture
def song(tmp_path: Path) -> Path:
    return short_song(tmp_path / "my song.wav")


def store(folder: Path, process_id: str | None = None) -> SQLiteJournal:
    return SQLiteJournal(folder / "journal.sqlite", process_id=process_id, poll=5.0)


@asynccontextmanager
async def recording(folder: Path, **options: Any) -> AsyncGenerator[Service]:
    async with serving(journal=store(folder), **{"goes_on": (3.0, 5.0), **options}) as service:
        yield service


async def extend(service: Service, seconds: float = 42.0, **options: Any) -> kie.Chain:
    return await service.session.extend_until(TRACK, seconds, **{"model": "V5", **options})


def cuts(service: Service) -> list[float | None]:
    return [charge.body.get("continueAt") for charge in service.emulator.ledger]


# ---------------------------------------------------------------- how it goes


async def test_a_file_is_extended_until_it_is_long_enough(song: Path) -> None:
    async with serving(goes_on=(3.0, 5.0)) as service:
        chain = await service.session.extend_until(song, 14.0)
        assert chain.end == "reached"
        assert [step.length for step in chain.steps] == [6.5, 11.0, 15.5]
        assert cuts(service) == [1.5, 6.0, 10.5]
        assert [step.cut for step in chain.steps] == cuts(service)
        assert chain.length == 15.5
        assert chain.source_duration == 2.0
        assert chain.credits == 36
        assert [step.holds for step in chain.steps] == ["whole"] * 3
        notes = [notice.note.partition(":")[0] for notice in service.of(Notice)]
        assert notes == ["continue_at", "a chain without a journal"]
        value = chain.to_dict()
        assert chain.track is not None
        assert value["steps"][2]["track"] == chain.track.id
        assert (value["length"], value["credits"], value["end"]) == (15.5, 36, "reached")


async def test_own_parameters_hold_for_every_step(song: Path) -> None:
    async with serving(goes_on=(3.0, 5.0), settings={"route": "jobs"}, malformed_jobs=False) as service:
        own: dict[str, Any] = {"style": "folk", "title": "Longer", "lyrics": "la la", "variety": 2.0}
        await service.session.extend_until(song, 12.0, continue_at=1.0, before_end=1.0, model="V4_5", **own)
        first, second, third = (charge.body["input"] for charge in service.emulator.ledger)
        assert (first["continue_at"], first["lyrics"], first["variety"]) == (1.0, "la la", 2)
        assert (second["continue_at"], second["prompt"], second["title"]) == (5.0, "la la", "Longer")
        assert third["continue_at"] == 9.0
        assert service.of(Notice)[0].note.startswith("a chain without a journal")


async def test_audio_at_an_address_is_cut_before_its_end(song: Path) -> None:
    async with serving(goes_on=(3.0, 5.0)) as service:
        uploaded = await service.session.upload(song)
        chain = await service.session.extend_until(uploaded.download_url, 6.0)
        assert cuts(service) == [1.5]
        assert (chain.source_duration, chain.length) == (None, 6.5)


async def test_a_track_of_which_only_the_id_is_known(song: Path) -> None:
    async with serving(goes_on=(3.0, 5.0)) as service:
        made = await (await service.session.upload_extend(song, continue_at=1))
        chain = await service.session.extend_until(made.tracks[1].id, 11.5, model="V5")
        assert cuts(service) == [1, None, 10.5]
        assert [step.length for step in chain.steps] == [11.0, 15.5]
        assert chain.steps[0].cut is None
        again = await service.session.extend_until(made.tracks[1].id, 6.0, model="V5", source_duration=6.0)
        assert (again.steps, again.length, again.track, again.end) == ((), 6.0, None, "reached")


@pytest.mark.parametrize(
    ("choose", "lengths"),
    [
        ("longest", [34.5, 39.0]),
        ("first", [32.5, 35.0, 37.5]),
        (lambda tracks: tracks[1], [34.5, 39.0]),
        (lambda tracks: asyncio.sleep(0, tracks[0]), [32.5, 35.0, 37.5]),
    ],
)
async def test_a_take_is_chosen(choose: Any, lengths: list[float]) -> None:
    async with serving(goes_on=(3.0, 5.0)) as service:
        chain = await extend(service, 36.0, choose=choose)
        assert [step.length for step in chain.steps] == lengths
        sources = [charge.body["audioId"] for charge in service.emulator.ledger]
        assert sources == ["a1", *(step.track.id for step in chain.steps[:-1])]


async def test_the_first_cut_may_be_given() -> None:
    async with serving(goes_on=(3.0, 5.0)) as service:
        chain = await extend(service, 29.0, continue_at=20.0, source_duration=29.5, **OWN)
        assert [step.length for step in chain.steps] == [25.0, 29.5]
        with pytest.raises(kie.InvalidRequestError, match="style: is missing"):
            await extend(service, continue_at=20.0)
        assert cuts(service) == [20.0, 24.5]


@pytest.mark.parametrize(
    ("goes_on", "options", "end", "length"),
    [
        ((3.0, 5.0), {"max_steps": 2}, "max_steps", 39.0),
        ((0.1, 0.4), {}, "nothing_added", 29.9),
        ((-9.5, -9.0), {}, "reached", 50.0),  # it can only be a continuation: 29.5 and 20.5
    ],
)
async def test_a_chain_ends(goes_on: tuple[float, float], options: dict[str, Any], end: str, length: float) -> None:
    async with serving(goes_on=goes_on) as service:
        chain = await extend(service, **options)
        assert (chain.end, chain.length) == (end, length)
        assert len(service.emulator.ledger) == len(chain.steps)


async def test_a_track_without_a_length_ends_it() -> None:
    async with serving(settings={"route": "jobs"}, goes_on=(3.0, 5.0), malformed_jobs=False) as service:
        service.emulator.faults.add(Fault("shape", shape="urls"))
        chain = await extend(service)
        assert (chain.end, chain.length, len(chain.steps)) == ("length_unknown", None, 1)


# ---------------------------------------------------------------- refused before anything is spent


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seconds": 481.0}, "seconds: is 8:01; V5 makes songs of at most 8:00"),
        ({"max_steps": 0}, "max_steps: is 0"),
        ({"before_end": math.nan}, "before_end: is nan; give seconds from 0.01 up"),
        ({"before_end": "soon"}, "before_end: is 'soon'; give seconds from 0.01 up"),
        ({"before_end": 30.0}, "before_end: is 30 s, and the source lasts 0:30; give less"),
        ({"choose": "best"}, 'choose: is \'best\'; give "longest", "first"'),
        ({"lyrics": "la"}, "lyrics: is given with a track"),
        ({"title": "Longer"}, "style: is missing"),
        ({"max_credits": 11.0}, "0 of max_credits 11 are spent, the next step costs 12: not sent; raise max_credits"),
        ({"max_credits": -1.0}, "max_credits is -1.0"),
    ],
)
async def test_nothing_is_spent_on_what_cannot_be(options: dict[str, Any], says: str) -> None:
    async with serving() as service:
        with pytest.raises(kie.KieError) as caught:
            await extend(service, **options)
        assert says in caught.value.message
        assert caught.value.charged == "no"
        assert len(service.emulator.ledger) == 0


async def test_what_a_later_step_would_be_refused_for_is_said_before_the_first(song: Path) -> None:
    async with serving(settings={"route": "jobs"}) as service:
        fields: dict[str, Any] = {"style": "folk", "title": "Longer", "lyrics": "la" * 2000}
        with pytest.raises(kie.InvalidRequestError, match="prompt: has 4000 characters; V4 takes at most 3000"):
            await service.session.extend_until(song, 60.0, model="V4", **fields)
        assert len(service.emulator.ledger) == 0


# ---------------------------------------------------------------- what stays after a failure


async def test_a_step_that_fails_says_what_there_is(tmp_path: Path) -> None:
    async with recording(tmp_path) as service:
        service.emulator.faults.add(Fault("failed", nth=2))
        with pytest.raises(kie.TaskFailedError) as caught:
            await extend(service, key="song")
        assert caught.value.message.startswith("step 2: ")
        (first,) = await made(service, "song-1")
        assert f"so far the song lasts 0:34.50 of 0:42 (track {first.tracks[1].id})" in caught.value.message
        assert "the same call pays for none of it again" in caught.value.message
        with pytest.raises(kie.ConflictError, match=r"'song-2' is failed .*paid again: kie-async jobs retry song-2"):
            await extend(service, key="song")
        assert len(service.emulator.ledger) == 2
        assert service.session.journal is not None
        await batch.retry(service.session.journal, "song-2")
        with pytest.raises(kie.BudgetError, match="step 2: 24 of max_credits 35 are spent"):
            await extend(service, key="song", max_credits=35.0)
        chain = await extend(service, key="song")
        assert [step.length for step in chain.steps] == [34.5, 39.0, 43.5]
        assert chain.credits == len(service.emulator.ledger) * 12 == 48


async def made(service: Service, *keys: str) -> list[Job]:
    assert service.session.journal is not None
    jobs = [await service.session.journal.get(key) for key in keys]
    return [job for job in jobs if job is not None]


async def test_a_chain_without_a_journal_says_how_to_go_on() -> None:
    async with serving(goes_on=(3.0, 5.0)) as service:
        with pytest.raises(kie.BudgetError) as caught:
            await extend(service, max_credits=13.0)
        track = service.emulator.task(service.emulator.ledger[0].task_id).track_ids[1]
        assert f"(track {track}); to go on from there, extend that track" in caught.value.message
        assert len(service.emulator.ledger) == 1


async def test_a_function_that_chooses_none_of_the_tracks(tmp_path: Path) -> None:
    async with recording(tmp_path) as service:
        with pytest.raises(kie.InvalidRequestError, match="step 1: choose: returned none of the tracks") as caught:
            await extend(service, choose=lambda _tracks: TRACK)
        paid = service.emulator.ledger[0]
        tracks = ", ".join(service.emulator.task(paid.task_id).track_ids)
        left = f"the step is made and paid (tracks {tracks}); the same call pays for none of it"
        assert left in caught.value.message
        assert (caught.value.charged, caught.value.task_id) == ("yes", paid.task_id)
        with pytest.raises(ZeroDivisionError) as failed:
            await extend(service, choose=lambda _tracks: 1 / 0)
        assert failed.value.__notes__ == [f"step 1 of a chain: {left} again"]
        await extend(service, choose=lambda tracks: tracks[1])  # the first step is not paid again
        assert len(service.emulator.ledger) == 3


async def test_the_same_call_goes_on_and_keeps_the_takes_that_were_chosen(tmp_path: Path) -> None:
    chosen: list[str] = []

    def choose(tracks: Sequence[kie.Track]) -> kie.Track:
        chosen.append(tracks[0].id)
        return tracks[0]

    async with recording(tmp_path) as service:
        first = await extend(service, 35.0, choose=choose)
        assert len(service.emulator.ledger) == 2
        polls = service.emulator.polls(first.steps[0].task_id)
        longer = await extend(service, 37.0, choose=choose)
        assert longer.steps[:2] == first.steps
        assert [step.length for step in longer.steps] == [32.5, 35.0, 37.5]
        assert len(service.emulator.ledger) == 3
        assert service.emulator.polls(first.steps[0].task_id) == polls
        assert len(chosen) == len(set(chosen)) + 1  # the last of the first run, again
        other = await extend(service, 35.0, choose=choose, style="folk", title="Longer", instrumental=True)
        assert other.key != longer.key


async def test_a_caller_that_goes_away_in_a_step_does_not_pay_it_again(tmp_path: Path) -> None:
    async with recording(tmp_path) as service:
        call = asyncio.create_task(extend(service, 34.0))
        while not service.emulator.ledger:
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        chain = await extend(service, 34.0)
        assert chain.steps[0].task_id == service.emulator.ledger[0].task_id
        assert len(service.emulator.ledger) == 1


async def test_a_step_of_which_nobody_knows_is_not_sent_again(tmp_path: Path) -> None:
    async with recording(tmp_path, settings={"recovery_timeout": 1.0}) as service:
        service.emulator.faults.add(Fault("lost", nth=1))
        with pytest.raises(kie.SubmitUnknownError, match=r"step 1: .*; no step is made yet"):
            await extend(service, key="song")
        with pytest.raises(kie.SubmitUnknownError, match=r"'song-1' is unknown .*kie-async jobs resolve song-1"):
            await extend(service, key="song")
        assert len(service.emulator.ledger) == 1
        assert service.session.journal is not None
        await batch.resolve_as(service.session.journal, "song-1", service.emulator.ledger[0].task_id)
        assert (await extend(service, 34.0, key="song")).end == "reached"
        assert len(service.emulator.ledger) == 1


async def test_an_intent_of_a_dead_process_is_unknown(tmp_path: Path) -> None:
    async with store(tmp_path, "elsewhere:1:aa") as dead:
        await dead.add([Job(key="song-1", request=kie.ExtendRequest("a1", model="V5"))])
        await dead.intend("song-1", "t" * 43)
    async with recording(tmp_path) as service:
        await asyncio.sleep(200)  # its lease runs out
        with pytest.raises(kie.SubmitUnknownError, match="'song-1' is unknown"):
            await extend(service, key="song")
        assert service.session.journal is not None
        await batch.give_up(service.session.journal, "song-1")
        with pytest.raises(kie.ConflictError, match=r"is abandoned .*: it was given up; another key"):
            await extend(service, key="song")
        assert len(service.emulator.ledger) == 0


async def test_a_key_that_another_job_has_is_refused(tmp_path: Path, song: Path) -> None:
    async with recording(tmp_path) as service:
        await service.session.submit(kie.ExtendRequest("other", model="V5"), key="song-2")
        says = "'song-2' of the journal extends something else: give another key"
        with pytest.raises(kie.ConflictError, match=f"step 2: job {says}"):
            await extend(service, key="song")
        for source in (song, kie.Track("other", duration=30.0)):
            with pytest.raises(kie.ConflictError, match="step 1: job 'song-1' of the journal extends something else"):
                await service.session.extend_until(source, 42.0, key="song", model="V5")
        assert len(service.emulator.ledger) == 2
        await service.session.extend_until(song, 5.0, key="other")
        with pytest.raises(kie.ConflictError, match="step 1: job 'other-1' of the journal extends something else"):
            await service.session.extend_until(short_song(tmp_path / "second.wav"), 5.0, key="other")


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("journal", [True, False])
async def test_the_takes_are_downloaded_as_they_come(tmp_path: Path, song: Path, *, journal: bool) -> None:
    async with serving(goes_on=(3.0, 5.0), journal=store(tmp_path) if journal else None) as service:
        service.emulator.faults.add(Fault("code", on="download", nth=2, code=403), Fault("empty", on="download", nth=1))
        with pytest.raises(kie.DownloadError, match=r"step 1: .*; the step is made and paid \(tracks ") as caught:
            await service.session.extend_until(song, 8.0, directory=tmp_path / "new")
        assert caught.value.task_id == service.emulator.ledger[0].task_id
        service.emulator.faults.clear()
        chain = await service.session.extend_until(song, 8.0, directory=tmp_path / "new")
        assert len(service.emulator.ledger) == (2 if journal else 3)
        assert [len(step.files) for step in chain.steps] == [2, 2]
        assert chain.steps[1].file == chain.steps[1].files[1]
        for step in chain.steps:
            for path, track in zip(step.files, step.tracks, strict=True):
                assert path.read_bytes() == await service.emulator.audio(track.id)
                assert path.name.startswith("my-song-")
        jobs = await made(service, *(f"{chain.key}-{step.number}" for step in chain.steps)) if journal else []
        assert {job.state for job in jobs} <= {State.DELIVERED}
        again = await service.session.extend_until(song, 8.0, directory=tmp_path / "new") if journal else chain
        assert again == chain


async def test_the_sound_of_a_take_tells_what_it_holds(tmp_path: Path) -> None:
    song = tmp_path / "song.wav"
    song.write_bytes(emulator.demo_song())
    async with serving(goes_on=(9.0, 12.0), answers="continuation") as service:
        chain = await service.session.extend_until(song, 28.0, continue_at=8.0, directory=tmp_path / "new")
        assert [(step.holds, step.length) for step in chain.steps] == [
            ("continuation", 20.0),
            ("continuation", 28.5),
        ]
        unheard = await service.session.extend_until(song, 30.0, continue_at=8.0)
        assert [(step.holds, step.length) for step in unheard.steps] == [("whole", 12.0), ("whole", 12.0)]
        assert unheard.end == "nothing_added"


async def test_a_take_that_fades_out_is_cut_before_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    song, find = tmp_path / "song.wav", importlib.util.find_spec
    song.write_bytes(emulator.demo_song())

    async with recording(tmp_path, goes_on=(10.0, 12.0)) as service:

        async def extend(seconds: float) -> list[tuple[float | None, float | None]]:
            given: dict[str, Any] = {"continue_at": 8.0, "directory": tmp_path / "new", "key": "song"}
            chain = await service.session.extend_until(song, seconds, **given)
            return [(step.cut, step.fades_from) for step in chain.steps]

        first = await extend(28.0)
        assert first == [(8.0, None), (16.5, 17.0)]  # it fades out for 3 s, and lasts 20 s
        with monkeypatch.context() as without:  # the extra
            without.setattr(importlib.util, "find_spec", lambda name: None if name == "numpy" else find(name))
            assert await extend(40.0) == [(8.0, None), (16.5, None), (28.0, None)]
        assert await extend(40.0) == [*first, (28.0, None)]
        assert len(service.emulator.ledger) == 3
        (third,) = await made(service, "song-3")
        (tmp_path / "new" / third.files[1]).write_bytes(b"no audio")
        assert await extend(42.0) == [*first, (28.0, None), (39.5, None)]
        assert cuts(service) == [8.0, 16.5, 28.0, 39.5]


async def test_a_task_of_another_job_is_refused(tmp_path: Path) -> None:
    async with recording(tmp_path) as service:
        await extend(service, 34.0, key="one")
    async with recording(tmp_path) as service:  # of the same seed: it gives the same ids
        with pytest.raises(kie.ConflictError, match="step 1: the service gave the id of a task that the journal has"):
            await extend(service, 34.0, key="two")


async def test_a_take_that_cannot_be_compared_is_told_by_its_length(tmp_path: Path, song: Path) -> None:
    async with serving(goes_on=(3.0, 5.0), check_sources=False) as service:
        given: dict[str, Any] = {"source_duration": 30.0, "continue_at": 29.0, "directory": tmp_path / "new"}
        chain = await service.session.extend_until(song, 33.0, **given)
        assert [(step.holds, step.length) for step in chain.steps] == [("whole", 34.0)]
        assert any("is told by its length alone: continue_at: is 0:29" in each.note for each in service.of(Notice))
