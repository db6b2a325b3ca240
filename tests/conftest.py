"""What all tests share: the virtual clock, the samples, and an environment without the user's own settings."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import signal
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from virtual_time import VirtualTimeLoop

pytest_plugins = ["command_line", "postgres", "workers"]

# A shell that runs the tests in the background has them, and the commands they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A property is held to no time: a busy machine may stop a process for longer than Hypothesis allows an example.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Hypothesis loads it in the midst of a test; Python 3.11 may then fail to compile it, for a body nested too deeply was
# read before ("AST constructor recursion depth mismatch").
with suppress(ImportError):
    import_module("hypothesis.internal.conjecture.optimiser")

# The processes that tests start, which are many, find the code compiled, also where the environment forbids to write
# bytecode; nothing is written beside the sources.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None) and "PYTHONPYCACHEPREFIX" not in os.environ:
    _bytecode = tempfile.TemporaryDirectory(prefix="kie-async-bytecode-", ignore_cleanup_errors=True)
    atexit.register(_bytecode.cleanup)
    os.environ["PYTHONPYCACHEPREFIX"] = _bytecode.name

SAMPLES = Path(__file__).parent / "samples"


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    is_real = request.node.get_closest_marker("real_time") is not None
    return "asyncio", {} if is_real else {"loop_factory": VirtualTimeLoop}


# The user's: how the network is reached, and what the terminal is like.
_OWN = {"https_proxy", "http_proxy", "all_proxy", "no_proxy"}
_OWN |= {"columns", "lines", "no_color", "force_color", "tty_compatible", "tty_interactive"}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tuple(os.environ):
        if (name.startswith(("KIE_", "OTEL_")) and not name.startswith("KIE_TEST_")) or name.lower() in _OWN:
            monkeypatch.delenv(name)


@pytest.fixture
async def clock() -> VirtualTimeLoop:
    """The virtual clock of the running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.watch_threads()
    return loop


def sample_json(name: str) -> Any:  # a body can be anything
    """Read a recorded body of the service as JSON."""
    return json.loads((SAMPLES / name).read_bytes())
