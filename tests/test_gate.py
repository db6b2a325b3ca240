"""What the README tells those who have a clone, and what the gate runs, are the same; and no test can hang."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OPTIONS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]


def test_the_gate_runs_the_command_of_the_readme() -> None:
    (command,) = re.findall(r"^python -m pip .*pytest.*$", README, re.MULTILINE)
    assert f"command='{command}'\n" in (ROOT / ".ci" / "run").read_text()


def test_what_the_commands_of_the_readme_make_is_ignored_by_git() -> None:
    made = set(re.findall(r"--out (\w+)$", README, re.MULTILINE))
    assert made >= {"demo", "extended"}
    assert {f"{name}/" for name in made} <= set((ROOT / ".gitignore").read_text().splitlines())


def test_each_figure_of_the_readme_has_a_benchmark() -> None:
    named = re.findall(r"^\|.*\| `(\w+)[^`]*` \|$", README, re.MULTILINE)
    assert len(named) > 10
    assert set(named) <= set(NAMES)


HANGING = """
import threading

import pytest


@pytest.fixture
def stuck():
    yield
    threading.Event().wait()


def test_that_hangs(stuck):
    threading.Event().wait()
"""


@pytest.mark.scale
def test_a_test_that_hangs_ends_by_itself_with_its_name(tmp_path: Path) -> None:
    assert 0 < OPTIONS["timeout"] <= 600
    (tmp_path / "test_mine.py").write_text(HANGING)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "1", "-c", str(ROOT / "pyproject.toml")]
    options = ["--rootdir", str(tmp_path), "-o", "timeout=1", "-o", "pythonpath="]
    done = subprocess.run(  # noqa: S603  # our own
        [*command, *options, "test_mine.py"],
        cwd=tmp_path,
        timeout=100,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert re.search(r"worker 'gw\d' crashed while running '.*test_mine\.py::test_that_hangs'", done.stdout)


@pytest.mark.scale
def test_ctrl_c_is_tested_also_where_a_shell_runs_the_tests_in_the_background() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
    test = "tests/test_cli_servers.py::test_emulate_in_this_process"
    ignoring = ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    done = subprocess.run(  # noqa: S603  # our own
        [*ignoring, sys.executable, "-m", "pytest", "-q", "-o", "timeout=60", test],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
