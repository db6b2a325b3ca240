"""The command line: parse, call, print. What it can do, the session does."""

from kie_async.cli._app import run

__all__ = ["run"]
