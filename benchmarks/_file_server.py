"""A host that takes uploads, and gives the same song at any address; ``python -m benchmarks._file_server SONG MBIT``.

Its line carries so many Mbit/s each way, for all clients together; 0 is without limit. Otherwise it does as little as
it can, for what is measured are its clients. It writes its port on its first line, and ends when its input is closed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aiohttp import web

PIECE = 1 << 18  # bytes


class Line:
    """One way of a line: what it carries waits for what came before."""

    def __init__(self, mbit: int) -> None:
        self._seconds_per_byte = 8e-6 / mbit if mbit else 0.0
        self._free_at = 0.0

    async def carry(self, size: int) -> None:
        """Wait as long as so many bytes take."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + size * self._seconds_per_byte
        await asyncio.sleep(self._free_at - now)


async def _serve(song: bytes, mbit: int) -> None:
    up, down = Line(mbit), Line(mbit)
    step = PIECE if mbit else len(song)

    async def take(request: web.Request) -> web.Response:
        size, file = 0, None
        async for part in await request.multipart():
            if getattr(part, "name", None) == "file":
                file = part
                while chunk := await part.read_chunk(PIECE):  # type: ignore[union-attr]  # no nested parts come
                    size += len(chunk)
                    await up.carry(len(chunk))
        assert file is not None
        data = {"success": True, "downloadUrl": f"http://{request.host}/tracks/up", "fileSize": size}
        return web.json_response({"success": True, "code": 200, "msg": "ok", "data": data})

    async def give(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "audio/mpeg", "Content-Length": str(len(song))})
        await response.prepare(request)
        for at in range(0, len(song), step):
            await down.carry(step)
            await response.write(song[at : at + step])
        return response

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
    asyncio.run(_serve(Path(sys.argv[1]).read_bytes(), int(sys.argv[2])))
