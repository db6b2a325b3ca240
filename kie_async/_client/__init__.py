"""The only room that opens aiohttp sessions on the client's side: one to the API, one to where results are kept."""

from kie_async._client.downloads import Fetcher
from kie_async._client.http_client import Transport

__all__ = ["Fetcher", "Transport"]
