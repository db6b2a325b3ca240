"""The client path on asyncio: session → submitter → http client → tracker → task. Opens all aiohttp sessions."""

from typing import TYPE_CHECKING

from kie_async._package import lazy_exports

if TYPE_CHECKING:
    from kie_async._client.client import Client, open_client
    from kie_async._client.concurrency import map_unordered
    from kie_async._client.downloads import Fetcher
    from kie_async._client.http_client import Transport
    from kie_async._client.task import Task

__all__ = ["Client", "Fetcher", "Task", "Transport", "map_unordered", "open_client"]

# The limiter uses one of these modules, and others of them use the limiter.
__getattr__ = lazy_exports(
    __name__,
    {
        "Client": "client",
        "Fetcher": "downloads",
        "Task": "task",
        "Transport": "http_client",
        "map_unordered": "concurrency",
        "open_client": "client",
    },
)
