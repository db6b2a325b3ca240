"""The only room that opens aiohttp sessions on the client's side: one to the API, one to where results are kept."""

from kie_async._transport.api import Transport
from kie_async._transport.fetch import Fetcher

__all__ = ["Fetcher", "Transport"]
