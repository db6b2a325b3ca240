"""One client's run, in a process of its own, as its documentation says to use it. Run by ``benchmarks.peers``.

Each client is a context that gives one function: submit one task, wait for its result, return its id.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import resource
import socket
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import aiohttp
import attrs

import kie_async as kie
from benchmarks._distant import Distant
from kie_async.settings import PLACEHOLDER_CALLBACK_URL, is_loopback

FAILED = {"CREATE_TASK_FAILED", "GENERATE_AUDIO_FAILED", "SENSITIVE_WORD_ERROR", "FAILED"}

One: TypeAlias = Callable[[int], Awaitable[str]]


@attrs.frozen
class Plan:
    """What a client is to do.

    Attributes:
        url: of the server.
        in_flight: so many of them at a time.
        interval: of the hand-written loop, in seconds.
        emulator: whether ours may take the server for an emulator.
    """

    client: str
    url: str
    tasks: int
    in_flight: int
    interval: float
    emulator: bool = False


# ---------------------------------------------------------------- ours


@asynccontextmanager
async def ours(plan: Plan, callback_url: str = "") -> AsyncGenerator[One]:
    """Poll, as a session does by default."""
    settings = (kie.Settings if plan.emulator else Distant)(
        api_key="k",
        base_url=plan.url,
        upload_base_url=plan.url,
        callback_url=callback_url,
        quota=plan.tasks,  # the server has none, and neither have the others
        max_in_flight=plan.tasks,
    )
    async with kie.KieSession(settings) as session, contextlib.AsyncExitStack() as stack:
        if callback_url:
            port = int(callback_url.rpartition(":")[2].partition("/")[0])
            await stack.enter_async_context(kie.callbacks.serve(session, port=port))

        async def one(number: int) -> str:
            task = await session.extend("a1", model="V5", title=f"t{number}", style="s", prompt="p", continue_at=1.0)
            return (await task).task_id

        yield one


def ours_called_back(plan: Plan) -> AbstractAsyncContextManager[One]:
    """Wait for callbacks, and poll once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return ours(plan, f"http://127.0.0.1:{port}/kie")


# ---------------------------------------------------------------- without a library


@asynccontextmanager
async def aiohttp_loop(plan: Plan) -> AsyncGenerator[One]:
    """What one writes by hand: submit, then poll and sleep in turn."""
    async with aiohttp.ClientSession(plan.url, headers={"Authorization": "Bearer k"}, raise_for_status=True) as http:

        async def one(number: int) -> str:
            body: dict[str, Any] = {"audioId": "a1", "model": "V5", "title": f"t{number}", "style": "s", "prompt": "p"}
            body |= {"continueAt": 1.0, "defaultParamFlag": True, "callBackUrl": PLACEHOLDER_CALLBACK_URL}
            async with http.post("/api/v1/generate/extend", json=body) as answer:
                task_id: str = (await answer.json())["data"]["taskId"]
            while True:
                async with http.get("/api/v1/generate/record-info", params={"taskId": task_id}) as answer:
                    record = (await answer.json())["data"]
                if record["status"] == "SUCCESS":
                    return task_id
                if record["status"] in FAILED:
                    raise RuntimeError(record["errorMessage"])
                await asyncio.sleep(plan.interval)

        yield one


# ---------------------------------------------------------------- libraries


@asynccontextmanager
async def suno_easy(plan: Plan) -> AsyncGenerator[One]:
    """Only synchronous: one client, and a thread for each task."""
    package = importlib.import_module("suno_easy")
    client = type("Client", (package.SunoClient,), {"BASE_URL": plan.url})("k")

    def extend(number: int) -> str:
        task = client.music.extend("a1", 1, "p", style="s", title=f"t{number}", model="V5", wait=False)
        task.wait()
        return str(task.task_id)

    with client.session, ThreadPoolExecutor(plan.tasks) as threads:
        yield lambda number: asyncio.get_running_loop().run_in_executor(threads, extend, number)


@asynccontextmanager
async def fal(plan: Plan) -> AsyncGenerator[One]:
    """``subscribe``: submit, poll until it has ended, fetch the result."""
    package = importlib.import_module("fal_client")
    package.client.QUEUE_URL_FORMAT = f"{plan.url}/"
    client = package.AsyncClient(key="k")  # it cannot be closed

    async def one(number: int) -> str:
        return str((await client.subscribe("fal-ai/extend", {"title": f"t{number}"}))["id"])

    yield one


@asynccontextmanager
async def replicate(plan: Plan) -> AsyncGenerator[One]:
    """A prediction in the background that is waited for."""
    client = importlib.import_module("replicate").Client("k", base_url=plan.url)  # it cannot be closed

    async def one(number: int) -> str:
        fields = {"title": f"t{number}"}
        prediction = await client.models.predictions.async_create("peers/extend", fields)
        await prediction.async_wait()
        assert prediction.output is not None
        return str(prediction.id)

    yield one


@asynccontextmanager
async def replicate_run(plan: Plan) -> AsyncGenerator[One]:
    """``async_run``: the answer to the submission is held back until the end (for 60 s at most)."""
    client = importlib.import_module("replicate").Client("k", base_url=plan.url)  # it cannot be closed

    async def one(number: int) -> str:
        return str(await client.async_run("peers/extend", {"title": f"t{number}"}))

    yield one


@asynccontextmanager
async def runwayml(plan: Plan) -> AsyncGenerator[One]:
    """A created task that is waited for."""
    package = importlib.import_module("runwayml")
    async with package.AsyncRunwayML(api_key="k", base_url=plan.url) as client:

        async def one(number: int) -> str:
            task = await client.sound_effect.create(model="eleven_text_to_sound_v2", prompt_text=f"t{number}")
            return str((await task.wait_for_task_output()).id)

        yield one


@attrs.frozen
class Client:
    """A row of the table.

    Attributes:
        package: under which it is installed; empty: nothing has to be.
        modules: imported before anything is measured.
    """

    use: Callable[[Plan], AbstractAsyncContextManager[One]]
    package: str = ""
    modules: tuple[str, ...] = ()


CLIENTS: Mapping[str, Client] = MappingProxyType(
    {
        "ours": Client(ours),
        "ours called back": Client(ours_called_back),
        "aiohttp loop": Client(aiohttp_loop),
        "suno-easy": Client(suno_easy, "suno-easy", ("suno_easy",)),
        "runwayml": Client(runwayml, "runwayml", ("runwayml", "runwayml.resources")),  # it imports those late
        "replicate": Client(replicate, "replicate", ("replicate",)),
        "replicate run": Client(replicate_run, "replicate", ("replicate",)),
        "fal-client": Client(fal, "fal-client", ("fal_client",)),
    }
)


# ---------------------------------------------------------------- measuring


def stay_here(event: str, arguments: tuple[Any, ...]) -> None:
    """Let no connection leave this machine, and no name be looked up elsewhere: an audit hook.

    Raises:
        RuntimeError: one was about to.
    """
    if event not in {"socket.connect", "socket.getaddrinfo"}:
        return
    host = arguments[1][0] if event == "socket.connect" and isinstance(arguments[1], tuple) else arguments[0]
    host = host.decode() if isinstance(host, bytes) else host
    if isinstance(host, str) and not is_loopback(host):
        raise RuntimeError(f"a client wanted to reach {host}")


def peak_memory() -> int:
    """The most memory this process has held since ``forget_peak``, in KiB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):  # ru_maxrss would count the parent's memory, too
                return int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def forget_peak() -> None:
    """Begin anew from the memory held now, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


async def measure(plan: Plan) -> dict[str, Any]:
    """Run all tasks, and say when each returned and what that took."""
    returned: dict[str, float] = {}
    errors: list[str] = []

    slots = asyncio.Semaphore(plan.in_flight)

    async def timed(one: One, number: int) -> None:
        await slots.acquire()
        try:
            task_id = await one(number)
            returned[task_id] = time.time()
        except Exception as error:  # noqa: BLE001  # whatever it raises, the task was not completed
            errors.append(repr(error))
        slots.release()

    forget_peak()
    held, wall, cpu = peak_memory(), time.perf_counter(), time.process_time()
    async with CLIENTS[plan.client].use(plan) as one:
        await asyncio.gather(*(timed(one, number) for number in range(plan.tasks)))
        wall, cpu, memory = time.perf_counter() - wall, time.process_time() - cpu, peak_memory() - held
    return {"returned": returned, "errors": errors, "wall": wall, "cpu": cpu, "memory": memory}


if __name__ == "__main__":
    sys.addaudithook(stay_here)
    given = Plan(**json.loads(sys.argv[1]))
    for module in CLIENTS[given.client].modules:
        importlib.import_module(module)
    print(json.dumps(asyncio.run(measure(given))))
