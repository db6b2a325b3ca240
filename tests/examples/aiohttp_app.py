"""aiohttp: submit a task, and wait for its result.

python aiohttp_app.py
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

import kie_async as kie

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SESSION = web.AppKey("session", kie.KieSession)


async def run_session(app: web.Application) -> AsyncIterator[None]:
    async with app[SESSION]:
        yield


async def submit(request: web.Request) -> web.Response:
    task = await request.app[SESSION].extend(request.query["audio_id"], model="V5")
    return web.json_response({"task_id": task.id}, status=202)


async def result(request: web.Request) -> web.Response:
    task = request.app[SESSION].track(request.match_info["task_id"])
    return web.json_response((await task).to_dict())


@web.middleware
async def refused(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except kie.KieError as error:
        status = 422 if isinstance(error, kie.InvalidRequestError) else 502
        return web.json_response({"error": error.message, "charged": error.charged}, status=status)


def make_app() -> web.Application:
    app = web.Application(middlewares=[refused])
    app[SESSION] = session = kie.KieSession()
    app.cleanup_ctx.append(run_session)
    app.router.add_post("/tasks", submit)
    app.router.add_get("/tasks/{task_id}", result)
    kie.callbacks.add_routes(app, session)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=8000, access_log=None)
