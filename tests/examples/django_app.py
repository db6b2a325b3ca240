"""Django under ASGI: submit a task, and wait for its result. In a project, this is its ``asgi.py``.

uvicorn django_app:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_POST
from starlette.applications import Starlette
from starlette.routing import Mount

import kie_async as kie

if not settings.configured:  # a project has its own settings
    settings.configure(
        SECRET_KEY=os.urandom(32).hex(), ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"], LOGGING_CONFIG=None
    )
    django.setup()

session = kie.KieSession()


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    async with session:
        yield


def refused(error: kie.KieError) -> JsonResponse:
    status = 422 if isinstance(error, kie.InvalidRequestError) else 502
    return JsonResponse({"error": error.message, "charged": error.charged}, status=status)


@require_POST  # type: ignore[untyped-decorator]  # theirs
async def submit(request: HttpRequest) -> JsonResponse:
    try:
        task = await session.extend(request.GET["audio_id"], model="V5")
    except kie.KieError as error:
        return refused(error)
    return JsonResponse({"task_id": task.id}, status=202)


@require_GET  # type: ignore[untyped-decorator]  # theirs
async def result(_request: HttpRequest, task_id: str) -> JsonResponse:
    try:
        return JsonResponse((await session.track(task_id)).to_dict())
    except kie.KieError as error:
        return refused(error)


urlpatterns = [path("tasks", submit), path("tasks/<str:task_id>", result)]

# Django knows no lifespan and no mounts: Starlette opens the session, and passes on what is not a callback.
app = Starlette(
    routes=[Mount("/kie", kie.callbacks.asgi(session)), Mount("/", get_asgi_application())], lifespan=lifespan
)
