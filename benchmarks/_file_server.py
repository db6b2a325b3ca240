"""A host that takes uploads, and gives the same song at any address; ``python -m benchmarks._file_server SONG``.

It does as little as it can, for what is measured are its clients. It writes its port on its first line, and ends when
its input is closed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aiohttp import web


async def _serve(song: bytes) -> None:
    async def take(request: web.Request) -> web.Response:
        size, file = 0, None
        async for part in await request.multipart():
            if getattr(part, "name", None) == "file":
                file = part
                while chunk := await part.read_chunk(1 << 18):  # type: ignore[union-attr]  # no nested parts come
                    size += len(chunk)
        assert file is not None
        data = {"success": True, "downloadUrl": f"http://{request.host}/tracks/up", "fileSize": size}
        return web.json_response({"success": True, "code": 200, "msg": "ok", "data": data})

    async def give(_request: web.Request) -> web.Response:
        return web.Response(body=song, content_type="audio/mpeg")

    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/api/file-stream-upload", take)
    app.router.add_get("/tracks/{name}", give)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]).read_bytes()))
