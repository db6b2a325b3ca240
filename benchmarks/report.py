"""The report of a folder of results: what it costs to write, first and again, and when the page shows its first row.

Each job has a source and two takes, all of them one mp3 by several names: music in stereo, as long as is said. The page
is opened from the disk in Debian's chromium, where that is installed; the time includes the start of its renderer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from selenium import webdriver

from benchmarks._report import table, versions

RATE = 44_100
BIT_RATE = 192_000
EMPTY = 300  # the width of a canvas that is not drawn yet


def encode(path: Path, seconds: float) -> None:
    """Write an mp3 of a tone that swells, in noise; second by second, for a process begins with its parent's memory."""
    random = np.random.default_rng(0)
    with av.open(path, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=RATE, layout="stereo")
        stream.bit_rate = BIT_RATE
        for second in range(round(seconds)):
            moments = second + np.arange(RATE) / RATE
            music = 0.4 * np.sin(1382 * moments) * (0.5 + 0.5 * np.sin(moments))
            music = music + 0.1 * random.standard_normal((2, RATE))
            frame = av.AudioFrame.from_ndarray(music.astype(np.float32), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = RATE, second * RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def fill(folder: Path, jobs: int, seconds: float) -> None:
    """Make a folder of results."""
    song = folder / "song.mp3"
    encode(song, seconds)
    for job in range(jobs):
        source = folder / f"source-{job}.mp3"
        source.hardlink_to(song)
        for number in (1, 2):
            name = f"job-{job}-{number}.mp3"
            (folder / name).hardlink_to(song)
            facts = {
                "key": f"job-{job}",
                "request": {"continue_at": seconds * 0.75, "title": f"Song {job}"},
                "source": {"path": str(source)},
                "track": {"number": number},
                "file": {"name": name},
            }
            (folder / f"job-{job}-{number}.kie.json").write_text(json.dumps(facts))
    song.unlink()


def measure(folder: Path) -> tuple[float, float, float]:
    """Write the report in a process of its own: seconds, seconds of CPU, and the most memory in MiB."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "kie_async", "report", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603  # ourselves
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def first_row(page: Path) -> float | None:
    """Seconds from the opening of the page until its first row has its waveforms; None without a browser."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for each in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(each)
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
        browser.get(page.as_uri())
        while browser.execute_script("return document.querySelector('.job canvas')?.width ?? 300") == EMPTY:
            time.sleep(0.005)
        return float(browser.execute_script("return performance.now()")) / 1000


def main(arguments: Sequence[str]) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks report", description=__doc__)
    parser.add_argument("--jobs", type=int, default=100, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=240.0, help="the length of a file (%(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder, options.jobs, options.seconds)
        found = {"first": measure(folder), "again": measure(folder)}
        shown = first_row(folder / "report.html")
        size = (folder / "report.html").stat().st_size / 1e6
    print(versions("av", "numpy") + f", {options.jobs} jobs, {3 * options.jobs} files of {options.seconds:.0f} s")
    rows = [(name, f"{wall:.1f}", f"{cpu:.1f}", f"{memory:.0f}") for name, (wall, cpu, memory) in found.items()]
    table(("the report", "s", "CPU s", "MiB"), rows)
    seen = "no browser" if shown is None else f"{shown:.2f} s"
    print(f"the page: {size:.1f} MB, first row after: {seen}")
    return 0
