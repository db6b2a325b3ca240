"""A process that submits as fast as a shared quota allows: ``python quota_process.py JOURNAL PORT NAME MANY FACTS``.

It says "ready" when it may begin, and begins when it is told. Each submission is one connection to a counting server.
"""

from __future__ import annotations

import asyncio
import json
import sys

import anyio

from kie_async.journal import JournalLimiter, SharedPermit, open_journal


async def submit(limiter: JournalLimiter, port: int, name: str) -> None:
    while True:
        permit = await limiter.acquire()
        assert isinstance(permit, SharedPermit)
        if permit.is_valid:
            break
        permit.give_back()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{name}\n".encode())
    await reader.readline()
    permit.release()
    writer.close()
    await writer.wait_closed()


async def main(url: str, port: str, name: str, many: str, facts: str) -> None:
    async with open_journal(url) as journal, JournalLimiter(journal, **json.loads(facts)) as limiter:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await anyio.to_thread.run_sync(sys.stdin.readline)
        async with anyio.create_task_group() as group:
            for _ in range(int(many)):
                group.start_soon(submit, limiter, int(port), name)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
