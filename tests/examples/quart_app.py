"""Quart: submit a task, and wait for its result.

uvicorn quart_app:app
"""

from __future__ import annotations

from typing import Any

from hypercorn.middleware import DispatcherMiddleware
from quart import Quart, request

import kie_async as kie

quart_app = Quart(__name__)
session = kie.KieSession()


@quart_app.before_serving
async def open_session() -> None:
    await session.__aenter__()


@quart_app.after_serving
async def close_session() -> None:
    await session.aclose()


@quart_app.post("/tasks")
async def submit() -> tuple[dict[str, str], int]:
    task = await session.extend(request.args["audio_id"], model="V5")
    return {"task_id": task.id}, 202


@quart_app.get("/tasks/<task_id>")
async def result(task_id: str) -> dict[str, Any]:
    return (await session.track(task_id)).to_dict()


@quart_app.errorhandler(kie.KieError)
async def refused(error: kie.KieError) -> tuple[dict[str, str], int]:
    status = 422 if isinstance(error, kie.InvalidRequestError) else 502
    return {"error": error.message, "charged": error.charged}, status


app = DispatcherMiddleware({"/kie": kie.callbacks.asgi(session), "/": quart_app})
