"""Receive the service's callbacks: in aiohttp, in any ASGI framework, in a small server, or in your own way."""

from typing import TYPE_CHECKING

from kie_async._package import lazy_exports
from kie_async._protocol.signing import sign_callback
from kie_async.callbacks._receiver import Receiver, Receiving, unwrap

if TYPE_CHECKING:
    from kie_async.callbacks._aiohttp import Serving, add_routes, serve
    from kie_async.callbacks._asgi import asgi

__all__ = ["Receiver", "Receiving", "Serving", "add_routes", "asgi", "serve", "sign_callback", "unwrap"]

# Every session has a receiver; few receive callbacks.
__getattr__ = lazy_exports(__name__, {**dict.fromkeys(("Serving", "add_routes", "serve"), "_aiohttp"), "asgi": "_asgi"})


def __dir__() -> list[str]:
    return __all__
