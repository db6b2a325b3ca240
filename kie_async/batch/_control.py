"""What a program may ask of a worker while it works, and a small HTTP server that tells an orchestrator how it is."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import anyio
from aiohttp import web

from kie_async._client.http_server import listening, url_of

_SHUTDOWN_TIMEOUT = 1.0  # seconds for answers under way when it ends


async def _not_begun() -> str:
    return "it has not begun"


class WorkerControl:
    """Ends a worker in good order, and tells how it is. Given to ``work``; made for one call of it.

    Attributes:
        draining: set when nothing more is to be taken.
        started_at: unix seconds.
        check: what ``why_not_ready`` asks; the worker sets it.
    """

    def __init__(self) -> None:
        self.draining = anyio.Event()
        self.started_at = time.time()
        self.check: Callable[[], Awaitable[str]] = _not_begun

    async def why_not_ready(self) -> str:
        """Return the reason why the worker takes no jobs now; "" if it does."""
        return await self.check()

    def drain(self) -> None:
        """Let the worker take and submit nothing more; ``work`` returns when what is submitted has ended."""
        self.draining.set()


class Metrics(Protocol):
    """Metrics that Prometheus reads."""

    content_type: str

    def text(self) -> bytes:
        """Return them as they stand."""
        ...


@asynccontextmanager
async def serve_health(
    why_not_ready: Callable[[], Awaitable[str]], metrics: Metrics | str, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """Serve ``/livez``, ``/readyz`` and ``/metrics`` over plain HTTP, without a password, as long as the block lasts.

    ``/livez`` answers 200 while the event loop runs. ``/readyz`` answers 200 while the worker takes jobs, and 503 with
    the reason while it does not. ``/metrics`` answers 501 if there are no metrics.

    Args:
        why_not_ready: returns the reason, or "" (``WorkerControl.why_not_ready``).
        metrics: what ``/metrics`` shows; or, as a text, why there are none and what to do about it.
        host: an address or name of this machine.
        port: 0 takes a free one.

    Yields:
        The address, as ``http://127.0.0.1:8081``.

    Raises:
        SettingsError: the port is in use, or the host not of this machine.
    """

    async def livez(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        reason = await why_not_ready()
        return web.Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

    async def show_metrics(_request: web.Request) -> web.Response:
        if isinstance(metrics, str):
            return web.Response(text=f"{metrics}\n", status=501)
        return web.Response(body=metrics.text(), headers={"Content-Type": metrics.content_type})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", show_metrics)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT)
    async with listening(runner, "questions about health", host, port) as address:
        yield url_of(*address)
