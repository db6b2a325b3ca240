"""FastAPI: submit a task, watch its stages as they come, and play both tracks.

    KIE_JOURNAL=kie.sqlite uvicorn fastapi_app:app --workers 2

The journal lets the workers share the tasks, the callbacks and the quota; PostgreSQL does it for many machines.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

import kie_async as kie

PAGE = Path(__file__).with_name("player.html")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with kie.KieSession() as session:
        app.mount("/kie", kie.callbacks.asgi(session))  # KIE_CALLBACK_URL ends in /kie
        app.state.kie = session
        yield


app = FastAPI(lifespan=lifespan)


def current_session(request: Request) -> kie.KieSession:
    session: kie.KieSession = request.app.state.kie
    return session


Session = Annotated[kie.KieSession, Depends(current_session)]


@app.exception_handler(kie.KieError)
async def refused(_request: Request, error: kie.KieError) -> JSONResponse:
    status = 422 if isinstance(error, kie.InvalidRequestError) else 502
    return JSONResponse({"error": error.message, "charged": error.charged}, status)


@app.get("/", response_class=FileResponse)
async def page() -> Path:
    return PAGE


@app.post("/tasks", status_code=202)
async def submit(session: Session, audio_id: str) -> dict[str, str]:
    task = await session.extend(audio_id, model="V5")
    return {"task_id": task.id}  # at once: the task takes minutes


@app.get("/tasks/{task_id}/events")
async def events(session: Session, task_id: str) -> StreamingResponse:
    return StreamingResponse(stages(session.track(task_id)), media_type="text/event-stream")


async def stages(task: kie.Task) -> AsyncIterator[str]:
    """Server-sent events: each stage as it is reached, then the end. Who goes away stops nothing."""
    async for event in task.events():
        yield sent(event.stage, {"tracks": [track.to_dict() for track in event.tracks]})
    try:
        yield sent("result", (await task).to_dict())
    except kie.KieError as error:
        yield sent("failed", {"error": error.message, "charged": error.charged})


def sent(name: str, data: dict[str, object]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
