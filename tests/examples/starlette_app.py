"""Starlette: submit a task, and wait for its result.

uvicorn starlette_app:app
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

import kie_async as kie

session = kie.KieSession()


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    async with session:
        yield


async def submit(request: Request) -> JSONResponse:
    task = await session.extend(request.query_params["audio_id"], model="V5")
    return JSONResponse({"task_id": task.id}, 202)


async def result(request: Request) -> JSONResponse:
    return JSONResponse((await session.track(request.path_params["task_id"])).to_dict())


async def refused(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, kie.KieError)
    status = 422 if isinstance(error, kie.InvalidRequestError) else 502
    return JSONResponse({"error": error.message, "charged": error.charged}, status)


app = Starlette(
    routes=[
        Route("/tasks", submit, methods=["POST"]),
        Route("/tasks/{task_id}", result),
        Mount("/kie", kie.callbacks.asgi(session)),
    ],
    exception_handlers={kie.KieError: refused},
    lifespan=lifespan,
)
