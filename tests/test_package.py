"""The package as a whole: its names, its modules, and what it does not drag in."""

from __future__ import annotations

import ast
import importlib.util
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import kie_async

ROOT = Path(kie_async.__file__).parent
MODULES = ["kie_async", *(module.name for module in pkgutil.walk_packages([str(ROOT)], "kie_async."))]


def _unmeasured() -> dict[str, str]:
    """The environment without coverage's own: it would take longer than what is run here."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}


def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  # our own interpreter and code
        [sys.executable, "-W", "error", "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        env=_unmeasured(),
    )


# What all of them need is loaded once; each module is then imported in a fork of that process.
ALONE = """
import os, sys, traceback
import aiohttp.web, anyio, attrs, av, cattrs, cyclopts, email.parser, numpy, orjson, psycopg, pytest, rich.live, sqlite3
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            __import__(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
"""


@pytest.mark.scale
def test_each_module_can_be_imported_alone() -> None:
    done = run(ALONE, *MODULES)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


PACKAGES = [name for name in MODULES if (ROOT.parent.joinpath(*name.split(".")) / "__init__.py").exists()]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_exports_what_it_imports_and_nothing_else(name: str) -> None:
    tree = ast.parse((ROOT.parent.joinpath(*name.split(".")) / "__init__.py").read_text())
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.If))]  # for type checkers only
    imported = {
        alias.asname or alias.name
        for body in bodies
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kie_async")
        for alias in node.names
    } - {"lazy_exports"}
    exported = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    ]
    assert imported == set(*exported)
    module = importlib.import_module(name)
    assert [each for each in imported if getattr(module, each, None) is None] == []
    with pytest.raises(AttributeError, match="nowhere"):
        module.nowhere  # noqa: B018  # it raises


def test_every_public_name_is_there_and_documented() -> None:
    undocumented = {name for name in kie_async.__all__ if not getattr(kie_async, name).__doc__}
    assert undocumented <= {"MODELS", "Request"}  # a table and a union


def test_no_module_has_a_name_of_the_standard_library() -> None:
    """The folder of a script, or of the shell, goes first: its modules would stand in for the interpreter's own."""
    names = {path.stem for path in ROOT.rglob("*.py")}
    assert names & sys.stdlib_module_names == set()


def test_the_command_runs_as_a_script_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "__main__.py"), "extend", "--help"]
    environment = {**_unmeasured(), "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)  # noqa: S603  # ourselves
    assert (done.returncode, done.stderr) == (0, "")
    assert "kie-async extend" in done.stdout


def test_modules_stay_small() -> None:
    lengths = {
        path: len(path.read_text().splitlines()) for path in ROOT.rglob("*.*") if path.suffix in {".py", ".js", ".css"}
    }
    assert {path.name: length for path, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize("extra", ["av", "numpy", "cyclopts", "rich", "pytest", "fastapi", "opentelemetry"])
def test_the_core_drags_in_no_extra(extra: str) -> None:
    code = f"import sys, kie_async.emulator; from kie_async import *; sys.exit({extra!r} in sys.modules)"
    assert run(code).returncode == 0


def test_importing_the_package_loads_names_only() -> None:
    done = run("import sys; before = set(sys.modules); import kie_async; print(*sorted(set(sys.modules) - before))")
    ours = ["kie_async", "kie_async._package"]
    standard = [name for name in done.stdout.split() if name.partition(".")[0] in sys.stdlib_module_names]
    assert sorted([*ours, *standard]) == done.stdout.split()
    assert {"asyncio", "ssl", "json", "logging"}.isdisjoint(standard)


def test_what_notebooks_show_is_loaded_by_notebooks_alone() -> None:
    code = "import sys; from kie_async import Job, KieSession, Track; sys.exit('kie_async._display' in sys.modules)"
    assert run(code).returncode == 0


def test_what_is_there_can_be_listed() -> None:
    assert run("import kie_async; print(*dir(kie_async))").stdout.split() == sorted(kie_async.__all__)


def test_one_room_opens_the_client_s_sessions() -> None:
    allowed = ("_client", "emulator")  # the emulator is the service: what it opens is not the client's
    openers = {path.relative_to(ROOT).parts[0] for path in ROOT.rglob("*.py") if "ClientSession(" in path.read_text()}
    assert openers <= {*allowed}


@pytest.mark.parametrize("package", [kie_async, kie_async.audio, kie_async.callbacks])
def test_dir_lists_the_public_names(package: ModuleType) -> None:
    assert dir(package) == sorted(package.__all__)


def test_without_the_extra_dir_lists_what_can_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    listed = {"Joined", "SUFFIXES", "Verdict", "can_compare", "check_join", "compare", "join", "quiet_from", "trim"}
    assert set(dir(kie_async.audio)) == listed
    code = "import sys; sys.modules |= {'av': None, 'numpy': None}; from kie_async.audio import " + ", ".join(listed)
    assert run(code).stderr == ""
