"""A process that dies within or between the steps of a chain: the same call goes on, and pays for nothing twice."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from child_process import read_line
from command_line import Terminal, ended, environment, served, short_song, started

from kie_async.emulator import Fault
from kie_async.testing import EmulatorHandle

CHILD = """
import asyncio, sys, time
import kie_async as kie
from kie_async.events import Submitted

folder, where = sys.argv[1:]
submitted = []

def stop(place):
    print(place, flush=True)
    if place == where:
        time.sleep(60)

def observe(event):
    if isinstance(event, Submitted):
        submitted.append(event)
        stop(f"within {len(submitted)}")

def choose(tracks):
    stop(f"after {len(submitted)}")
    return tracks[1]

async def main():
    settings = kie.Settings(observer=observe)
    async with kie.KieSession(settings, journal=f"{folder}/jobs.sqlite") as session:
        track = kie.Track("a1", duration=20.0)
        given = {"model": "V5", "choose": choose, "key": "song", "directory": folder, "before_end": 0.5}
        chain = await session.extend_until(track, 30.0, **given)
        print(len(chain.steps), chain.length, *(len(step.files) for step in chain.steps), flush=True)

asyncio.run(main())
"""


def run(service: EmulatorHandle, folder: Path, where: str) -> str:
    """Run it until it stops at a place, and kill it there; return the last line that it wrote."""
    command = [sys.executable, "-c", CHILD, str(folder), where]
    with subprocess.Popen(command, env=environment(service), stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  # our own words
        line = read_line(process)
        while line not in {where, ""} and not line[0].isdigit():
            line = read_line(process)
        process.kill()
        return line


@pytest.mark.scale
def test_it_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch, goes_on=(2.0, 4.0)) as service:
        charged = []
        # A process counts its own submissions: those of earlier ones are only followed.
        for where in ("within 1", "after 0", "within 1", "after 1"):
            assert run(service, tmp_path, where) == where
            charged.append(len(service.ledger))
        assert charged == [1, 1, 2, 3]
        assert run(service, tmp_path, "the end") == "3 30.5 2 2 2"
        sources = [charge.body["audioId"] for charge in service.ledger]
        assert len(sources) == len(set(sources)) == 3


@pytest.mark.scale
def test_killed_while_a_submission_has_no_answer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, song = Terminal(capsys), short_song(tmp_path / "song.wav")
    with served(monkeypatch, goes_on=(2.0, 4.0)) as service:
        words = ("upload-extend", str(song), "--until", "5", "--out", str(tmp_path / "new"), "--yes")
        service.add_faults(Fault("slow", on="submit", nth=1, seconds=60.0))
        with started(*words, env=environment(service)) as process:
            while not service.ledger:
                time.sleep(0.02)
            process.kill()
            ended(process)
        answer = terminal(*words)
        assert answer.code == 7, answer.err
        assert "step 1: job" in answer.err
        [line] = [line for line in answer.err.splitlines() if "kie-async jobs resolve" in line and "ID" in line]
        assert terminal(*line.rpartition("kie-async ")[2].replace("ID", service.ledger[0].task_id).split()).code == 0
        assert terminal(*words).code == 0
        assert len(service.ledger) == 1
