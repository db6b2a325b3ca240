"""Litestar: submit a task, and wait for its result.

uvicorn litestar_app:app
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Request, Response, asgi, get, post
from litestar.di import Provide

import kie_async as kie

kie_session = kie.KieSession()


@asynccontextmanager
async def lifespan(_app: Litestar) -> AsyncIterator[None]:
    async with kie_session:
        yield


@post("/tasks", status_code=202)
async def submit(session: kie.KieSession, audio_id: str) -> dict[str, str]:
    return {"task_id": (await session.extend(audio_id, model="V5")).id}


@get("/tasks/{task_id:str}")
async def result(session: kie.KieSession, task_id: str) -> dict[str, Any]:
    return (await session.track(task_id)).to_dict()


def refused(_request: Request[Any, Any, Any], error: kie.KieError) -> Response[dict[str, str]]:
    status = 422 if isinstance(error, kie.InvalidRequestError) else 502
    return Response({"error": error.message, "charged": error.charged}, status_code=status)


app = Litestar(
    [submit, result, asgi("/kie", is_mount=True, copy_scope=True)(kie.callbacks.asgi(kie_session))],
    dependencies={"session": Provide(lambda: kie_session, sync_to_thread=False)},
    exception_handlers={kie.KieError: refused},
    lifespan=[lifespan],
)
