"""Every block of the README runs, against the emulator."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import wave
from pathlib import Path
from typing import Any

import pytest

import kie_async as kie
from kie_async import emulator
from kie_async.testing import EmulatorHandle

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
CONSOLE = [code for language, code in BLOCKS if language == "console"]


def block(word: str) -> str:
    (found,) = [code for code in PYTHON if word in code]
    return str(found)


@pytest.fixture
def kie_emulator_options() -> dict[str, Any]:
    return {"goes_on": (1.0, 2.0)}  # music takes time to make


@pytest.fixture(scope="module")
def song() -> bytes:
    return emulator.demo_song()


@pytest.fixture
def folder(tmp_path: Path, song: bytes) -> Path:
    """A folder with a song, and a folder of songs, as the README speaks of."""
    (tmp_path / "songs").mkdir()
    for name in ("song.wav", "songs/a.wav", "songs/b.wav"):
        (tmp_path / name).write_bytes(song)
    return tmp_path


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  # the README's own code
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_readme_is_short_and_every_block_is_known() -> None:
    assert len(README.splitlines()) < 280
    figures = [language for language, _ in BLOCKS if language == "text"]
    assert len(BLOCKS) == len(PYTHON) + len(CONSOLE) + len(figures) == 10


def test_the_figure_of_the_rooms_is_true() -> None:
    """It names each room and public module, and nothing that is not there."""
    (figure,) = re.findall(r"```text\n(cli/.*?)```", README, re.DOTALL)
    package = Path(kie.__file__).parent
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("_")}
    assert set(re.findall(r"\w+(?:/|\.py)(?=\s)", figure)) == rooms | modules


@pytest.mark.usefixtures("kie_emulator")
def test_the_first_program(folder: Path) -> None:
    done = run(block("session.upload_extend("), folder)
    assert done.stderr == ""
    assert done.stdout.split()[::2][:3] == ["text", "first", "complete"]
    assert len(list((folder / "longer").glob("*.mp3"))) == 2


ASK = """
import asyncio, json, os, aiohttp, kie_async as kie
async def ask(port):
    async with aiohttp.ClientSession() as client:
        async with client.post(f"http://127.0.0.1:{port}/longer/a1") as answer:
            print(json.dumps(await answer.json()))
"""
FASTAPI = """
import uvicorn
async def main(port):
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.05)
    await ask(port)
    server.should_exit = True
    await serving
"""
AIOHTTP = """
from aiohttp import web

kept = []
class KieSession(kie.KieSession):
    def __init__(self):
        super().__init__()
        kept.append(self)
kie.KieSession = KieSession

async def longer(request):
    task = await kept[0].extend(request.match_info["audio_id"], model="V5")
    return web.json_response((await task).to_dict())

async def main(port):
    app = make_app()
    app.router.add_post("/longer/{audio_id}", longer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await ask(port)
    await runner.cleanup()
"""


def example(docstring: str | None) -> str:
    """The example of a docstring: what is indented after "::"."""
    return textwrap.dedent(inspect.cleandoc(docstring or "").partition("::\n\n")[2].partition("\n\nArgs:")[0])


@pytest.mark.parametrize(
    "code", [block("FastAPI") + ASK + FASTAPI, ASK + AIOHTTP + example(kie.callbacks.add_routes.__doc__)]
)
def test_callbacks(kie_emulator: EmulatorHandle, folder: Path, code: str, free_port: int) -> None:
    code = f"{code}\nasyncio.run(main({free_port}))"
    done = run(code, folder, KIE_CALLBACK_URL=f"http://127.0.0.1:{free_port}/kie")
    assert done.stderr == ""
    tracks = json.loads(done.stdout)["tracks"]
    assert [track["audio_url"].endswith(".mp3") for track in tracks] == [True, True]
    kie_emulator.wait_finished()
    assert [sent.status for sent in kie_emulator.callbacks] == [200] * 3


def test_testing_your_own_code(folder: Path) -> None:
    (folder / "test_mine.py").write_text(block("def test_a_lost_answer"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    plugins = ["-p", "kie_async.testing"] if not _is_installed() else []
    done = subprocess.run(  # noqa: S603  # the README's own code
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugins],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def _is_installed() -> bool:
    from importlib.metadata import entry_points  # needed here only

    return any(point.value == "kie_async.testing" for point in entry_points(group="pytest11"))


def commands() -> list[str]:
    """The commands of the README that this program offers; ``.ci/run`` runs those that install."""
    lines = [line for code in CONSOLE for line in code.splitlines()]
    return [line.rpartition("&& ")[2] for line in lines if "kie-async" in line]


@pytest.mark.parametrize("command", commands())
@pytest.mark.usefixtures("kie_emulator")
def test_the_commands(folder: Path, song: bytes, command: str) -> None:
    _, *arguments = shlex.split(command)
    if "--until" in arguments:  # 3:48, so that one step makes it long enough
        with wave.open(io.BytesIO(song)) as short, wave.open(str(folder / "song.wav"), "wb") as long:
            long.setparams(short.getparams())
            long.writeframes(short.readframes(short.getnframes()) * 9)
    done = subprocess.run(  # noqa: S603  # the README's own command
        [sys.executable, "-m", "kie_async", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((folder / arguments[-1]).glob("*.mp3"))) >= 2
