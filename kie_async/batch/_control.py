"""Control a running worker, and serve its health to an orchestrator over HTTP."""

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
    """Drains a worker, and says whether it is ready. Pass it to one call of ``work``.

    Attributes:
        draining: set when the worker is to take no more jobs.
        started_at: when it was made, in Unix seconds.
        check: returns the reason for ``why_not_ready``; the worker sets it.
    """

    def __init__(self) -> None:
        self.draining = anyio.Event()
        self.started_at = time.time()
        self.check: Callable[[], Awaitable[str]] = _not_begun

    async def why_not_ready(self) -> str:
        """Return why the worker takes no jobs now; "" if it does."""
        return await self.check()

    def drain(self) -> None:
        """Make the worker take and submit nothing more; ``work`` returns when all submitted tasks have ended."""
        self.draining.set()


class Metrics(Protocol):
    """Metrics for Prometheus."""

    content_type: str

    def text(self) -> bytes:
        """Return their current values, in the format of ``content_type``."""
        ...


@asynccontextmanager
async def serve_health(
    why_not_ready: Callable[[], Awaitable[str]], metrics: Metrics | str, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """Serve ``/livez``, ``/readyz`` and ``/metrics`` over plain HTTP, without a password, while the block lasts.

    ``/livez`` answers 200 while the event loop runs. ``/readyz`` answers 200 while the worker takes jobs, and 503 with
    the reason while it does not. ``/metrics`` answers 501 if there are no metrics.

    Args:
        why_not_ready: returns why the worker is not ready, or "" (``WorkerControl.why_not_ready``).
        metrics: the metrics; or a text that says why there are none and what to do about it.
        host: an address or name of this machine.
        port: the port; 0 for any free one.

    Yields:
        The address, such as ``http://127.0.0.1:8081``.

    Raises:
        SettingsError: the port is in use, or the host is not on this machine.
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
