"""The examples, each with its real framework under a real server, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from anyio import to_thread
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from kie_async import emulator
from kie_async.emulator import Fault
from kie_async.journal import Journal, PostgresJournal, SQLiteJournal, State

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

EXAMPLES = Path(__file__).parent / "examples"
UVICORN = (sys.executable, "-m", "uvicorn", "--log-level", "warning", "--no-access-log")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
OFFLINE = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


@pytest.fixture
async def service() -> AsyncIterator[emulator.Emulator]:
    async with emulator.serve(timeline=(0.5, 1.0, 1.5), goes_on=(2.0, 3.0)) as service:
        yield service


@asynccontextmanager
async def run(name: str, service: emulator.Emulator, *options: str, **environment: str) -> AsyncIterator[str]:
    """Run an example, and give its address. What is asked before it is ready waits in the socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [*UVICORN, f"{name}:app", "--fd", str(number), *options]
        if name == "aiohttp_app":
            program = "import aiohttp_app, socket, sys; from aiohttp import web"
            program += "; web.run_app(aiohttp_app.make_app(), sock=socket.socket(fileno=int(sys.argv[1])), print=None)"
            command = [sys.executable, "-c", program, str(number)]
        given = {"KIE_BASE_URL": service.base_url, "KIE_API_KEY": service.key, "KIE_CALLBACK_URL": f"{url}/kie"}
        async with await anyio.open_process(
            command,
            cwd=EXAMPLES,
            env={**os.environ, **given, **environment},
            pass_fds=[number],
            stdout=None,
            stderr=None,
        ) as process:
            try:
                yield url
            finally:
                with suppress(ProcessLookupError):  # a test has killed it
                    process.terminate()
                await process.wait()


async def submit(http: aiohttp.ClientSession, url: str) -> str:
    async with http.post(f"{url}/tasks", params={"audio_id": "e231aaaabbbb"}) as answer:
        assert answer.status == 202, await answer.text()
        return str((await answer.json())["task_id"])


async def stages(http: aiohttp.ClientSession, url: str, task_id: str) -> list[tuple[str, Any]]:
    """The server-sent events of a task."""
    async with http.get(f"{url}/tasks/{task_id}/events") as answer:
        events = (await answer.text()).strip().split("\n\n")
    pairs = [event.split("\n") for event in events]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]


@pytest.mark.parametrize("name", ["aiohttp_app", "django_app", "litestar_app", "quart_app", "starlette_app"])
async def test_a_task_is_submitted_called_back_and_answered(name: str, service: emulator.Emulator) -> None:
    async with run(name, service) as url, aiohttp.ClientSession() as http:
        task_id = await submit(http, url)
        async with http.get(f"{url}/tasks/{task_id}") as answer:
            result = await answer.json()
        async with http.get(f"{url}/tasks/no-such-task-" + "x" * 300) as answer:
            refused = answer.status, (await answer.json())["charged"]
        await service.wait_finished()
    assert result["task_id"] == task_id
    assert len(result["tracks"]) == 2
    assert refused == (422, "no")
    assert [sent.status for sent in service.callbacks] == [200] * 3


async def test_two_replicas_share_the_quota_the_tasks_and_the_callbacks(
    service: emulator.Emulator, tmp_path: Path
) -> None:
    count = 24
    results: list[list[str]] = []

    async def extend(here: str, there: str) -> None:
        task_id = await submit(http, here)
        results.append([name for name, _ in await stages(http, there, task_id)])

    journal = str(tmp_path / "kie.sqlite")
    async with (
        run("fastapi_app", service, KIE_JOURNAL=journal) as one,
        run("fastapi_app", service, KIE_JOURNAL=journal, KIE_CALLBACK_URL=f"{one}/kie") as other,
        aiohttp.ClientSession() as http,
        anyio.create_task_group() as group,
    ):
        for number in range(count):
            here, there = (one, other) if number % 2 else (other, one)
            group.start_soon(extend, here, there)
    assert results == [["text", "first", "complete", "result"]] * count
    times = sorted(arrival.at for arrival in service.arrivals)
    assert len(times) == count  # none was refused and sent again
    assert all(later - earlier > 10 for earlier, later in zip(times, times[20:], strict=False))


async def test_the_tasks_of_a_killed_replica_go_on_in_another(database_url: str, tmp_path: Path) -> None:
    path = tmp_path / "kie.sqlite"
    async with anyio.create_task_group() as group:
        group.start_soon(kill_a_replica, SQLiteJournal(path), str(path))
        group.start_soon(kill_a_replica, PostgresJournal(database_url), database_url)


async def kill_a_replica(store: Journal, address: str) -> None:
    count = 3
    async with (
        emulator.serve(timeline=(0.5, 1.0, 1.5), faults=[Fault("backwards")]) as service,  # until that is taken away
        store as journal,
        run("fastapi_app", service, KIE_JOURNAL=address) as killed,
        run("fastapi_app", service, KIE_JOURNAL=address) as other,
        aiohttp.ClientSession() as http,
    ):
        async with http.get(other) as page:
            assert page.status == 200  # it was open before the other died
        for _ in range(count):
            await submit(http, killed)
        (process_id,) = await journal.open_processes()
        os.kill(int(process_id.split(":")[1]), signal.SIGKILL)
        service.faults.clear()
        with anyio.fail_after(60):
            while (await journal.counts())[State.SUCCEEDED] < count:
                await anyio.sleep(0.1)
        assert len(service.ledger) == count


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver")
async def test_the_page_shows_the_stages_and_plays_both_tracks(service: emulator.Emulator) -> None:
    async with run("fastapi_app", service) as url:
        seen = await to_thread.run_sync(visit, url)
    assert seen["reached"] == ["text", "first", "complete"]
    assert seen["status"] == "Done."
    assert [length > 0 for length in seen["lengths"]] == [True, True]
    assert seen["log"] == []


def visit(url: str) -> dict[str, Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for each in OFFLINE:
        options.add_argument(each)
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as browser:
        wait = WebDriverWait(browser, 60)
        browser.get(url)
        browser.find_element(By.NAME, "audio_id").send_keys("e231aaaabbbb")
        browser.find_element(By.TAG_NAME, "button").click()
        wait.until(lambda _: browser.find_element(By.ID, "status").text == "Done.")
        lengths = "return [...document.querySelectorAll('audio')].map(audio => audio.duration || 0)"
        wait.until(lambda _: len(found := browser.execute_script(lengths)) == 2 and all(found))
        return {
            "reached": [each.get_attribute("id") for each in browser.find_elements(By.CSS_SELECTOR, "li.reached")],
            "status": browser.find_element(By.ID, "status").text,
            "lengths": browser.execute_script(lengths),
            "log": browser.get_log("browser"),  # type: ignore[no-untyped-call]  # theirs
        }
