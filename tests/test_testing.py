"""The fixtures for users: an emulated service in a thread of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from emulator_client import EXTEND

from kie_async.emulator import Fault
from kie_async.testing import EmulatorHandle, serve_in_thread


def post(handle: EmulatorHandle, path: str, body: object, key: str = "") -> Any:  # JSON
    headers = {"Authorization": f"Bearer {key or handle.key}", "Content-Type": "application/json"}
    request = urllib.request.Request(handle.base_url + path, json.dumps(body).encode(), headers)  # noqa: S310  # loopback
    with urllib.request.urlopen(request) as answer:  # noqa: S310  # loopback
        return json.load(answer)


def extend(handle: EmulatorHandle, *, key: str = "", **fields: object) -> Any:  # JSON
    return post(handle, "/api/v1/generate/extend", {**EXTEND, **fields}, key)


def test_a_blocking_test_sees_what_the_service_saw() -> None:
    with serve_in_thread(speed=5000.0) as handle:
        task_id = extend(handle, callBackUrl="http://127.0.0.1:1/nobody")["data"]["taskId"]
        handle.wait_finished()
        assert handle.credits == 988.0
        assert [charge.task_id for charge in handle.ledger] == [task_id]
        assert [arrival.code for arrival in handle.arrivals] == [200]
        assert {sent.status for sent in handle.callbacks} == {0}
        assert {sent.task_id for sent in handle.callbacks} == {task_id}
        assert handle.polls(task_id) == 0
        handle.top_up(12.0)
        assert handle.credits == 1000.0


def test_faults_come_and_go_from_any_thread() -> None:
    with serve_in_thread() as handle:
        fault = Fault("code", code=455)
        worker = threading.Thread(target=handle.add_faults, args=(fault,))
        worker.start()
        worker.join()
        assert extend(handle)["code"] == 455
        handle.remove_faults(fault)
        assert extend(handle)["code"] == 200


def test_a_wrong_key_is_refused_as_by_the_service() -> None:
    with serve_in_thread(key=["mine", "yours"]) as handle:
        assert handle.key == "mine"
        assert extend(handle)["code"] == 200
        assert extend(handle, key="emulated-account-1") == {
            "code": 401,
            "msg": "You do not have access permissions",
            "data": None,
        }
        assert len(handle.ledger) == 1


def test_the_repr_is_short() -> None:
    with serve_in_thread() as handle:
        assert repr(handle) == f"EmulatorHandle(base_url={handle.base_url!r}, key={handle.key!r})"


def test_it_is_gone_after_the_block() -> None:
    with serve_in_thread() as handle:
        pass
    with pytest.raises(urllib.error.URLError):
        extend(handle)


USERS_TESTS = """
import os
import urllib.request

import kie_async
import pytest


def test_the_environment_leads_to_it(kie_emulator):
    assert os.environ["KIE_BASE_URL"] == kie_emulator.base_url
    assert os.environ["KIE_API_KEY"] == kie_emulator.key
    assert "KIE_CALLBACK_URL" not in os.environ
    assert "KIE_WEBHOOK_KEY" not in os.environ
    assert kie_emulator.credits == 1000.0
    assert kie_async.Settings().api_key.reveal() == kie_emulator.key


class TestWithOptions:
    @pytest.fixture
    def kie_emulator_options(self):
        return {"credits": 12.0, "key": "mine"}

    def test_options_are_taken(self, kie_emulator):
        assert (kie_emulator.credits, os.environ["KIE_API_KEY"]) == (12.0, "mine")


def test_the_environment_is_clean_again():
    assert "KIE_BASE_URL" not in os.environ
"""


def python(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # noqa: S603  # our own


def plugin_options() -> list[str]:
    """How pytest finds the fixtures: by itself if the library is installed, or else by name."""
    installed = any(point.value == "kie_async.testing" for point in entry_points(group="pytest11"))
    return [] if installed else ["-p", "kie_async.testing"]


def test_the_fixtures_work_in_a_users_tests(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(USERS_TESTS)
    environment = {**os.environ, "KIE_CALLBACK_URL": "https://me.example/kie", "KIE_WEBHOOK_KEY": "hook"}
    environment["KIE_API_KEY_FILE"] = environment["KIE_WEBHOOK_KEY_FILE"] = "/run/secrets/kie"
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    command = ["-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin_options()]
    run = python([*command, str(tmp_path)], cwd=tmp_path, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 passed" in run.stdout


def test_the_plugin_loads_nothing_until_its_fixture_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("import sys\n\n\ndef test_nothing():\n    print('loaded', *sys.modules)\n")
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    loaded = []
    for plugin in ([], ["-p", "kie_async.testing"]):
        command = ["-W", "error", "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *plugin, "test_mine.py"]
        run = python(command, cwd=tmp_path, env=environment)
        assert run.returncode == 0, run.stdout + run.stderr
        loaded.append(next(set(line.split()) for line in run.stdout.splitlines() if line.startswith("loaded")))
    assert loaded[1] - loaded[0] == {"kie_async", "kie_async._package", "kie_async.testing"}
