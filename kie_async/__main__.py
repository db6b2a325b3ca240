"""``kie-async`` and ``python -m kie_async``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import kie_async

_NEEDED = frozenset({"cyclopts", "rich"})
_USAGE, _INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the command line without the program's name; by default that of this process.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        from kie_async.cli import run  # an extra: the library works without it
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing not in _NEEDED:
            raise
        if words == ["--version"]:
            sys.stdout.write(f"{kie_async.__version__}\n")  # loaded late, because it takes long
            return 0
        return _fail(words, "UsageError", f'{missing} is missing: pip install "kie_async[cli]"', _USAGE)
    except KeyboardInterrupt:  # while it is loaded, nothing is sent
        return _fail(words, "KeyboardInterrupt", "stopped by Ctrl-C", _INTERRUPTED)
    return run(words)


def _fail(words: Sequence[str], kind: str, message: str, code: int) -> int:
    if "--json" in words:
        facts = {"type": kind, "message": message, "code": None, "task_id": None}
        sys.stdout.write(json.dumps({"error": {**facts, "charged": "no", "retryable": False}}) + "\n")
    sys.stderr.write(f"error: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
