"""A folder of results as a batch leaves it, and the data of its report."""

from __future__ import annotations

import json
import math
import wave
from pathlib import Path
from typing import Any

RATE = 8000


def tone(  # noqa: PLR0913  # what there is to choose
    path: Path,
    seconds: float = 2.0,
    *,
    before: float = 0.0,
    loudness: float = 1.0,
    width: int = 2,
    channels: int = 1,
) -> Path:
    """Write a wav that is silent, or as loud as ``before``, then as loud as is said: a tone, in equal parts."""
    count = int(seconds * RATE)
    middle, top = (128, 127) if width == 1 else (0, 32767)
    values = [
        middle + round((loudness if number >= count // 2 else before) * top * math.sin(number / 3))
        for number in range(count)
        for _ in range(channels)
    ]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(RATE)
        file.writeframes(b"".join(value.to_bytes(width, "little", signed=width > 1) for value in values))
    return path


def sidecar(folder: Path, stem: str, number: int = 1, *, name: str | None = None, **more: Any) -> Path:
    """Write the sidecar of a take; ``more`` takes the place of what a batch would write."""
    facts = {
        "format": 1,
        "key": "song",
        "task_id": "5c79",
        "request": {"continue_at": 1.0, "title": "Longer"},
        "source": None,
        "track": {"number": number, "of": 2, "id": f"id-{stem}", "title": "Longer", "duration": 2.0},
        "file": {"name": name or f"{stem}.wav", "size": 1, "sha256": "ab"},
    }
    path = folder / f"{stem}.kie.json"
    path.write_text(json.dumps(facts | more))
    return path


def line(folder: Path, key: str = "song", **facts: Any) -> None:
    """Add a line to the results."""
    with (folder / "results.jsonl").open("a") as file:
        file.write(json.dumps({"key": key, "state": "delivered", "files": [], "error": None} | facts) + "\n")


def data_of(page: Path) -> Any:  # JSON can be anything
    """The data of a report."""
    text = page.read_text("utf-8")
    start = text.index(">", text.index('<script type="application/json"')) + 1
    return json.loads(text[start : text.index("</script>", start)])
