"""The command ``demo``: a song is made, and extended by the built-in emulator. Its docstring is the help."""

from __future__ import annotations

from pathlib import Path

from anyio import to_thread

from kie_async import emulator, files
from kie_async.batch import song_of
from kie_async.cli._connect import connect
from kie_async.cli._options import OUTPUT, CallbackOptions, Directory, OutputArg, OutputOptions
from kie_async.cli._tasks import download_tracks, follow
from kie_async.events import CallbackReceived, Polled
from kie_async.models import UploadExtendRequest

_SHARE = 0.75
_STORY = """\
A song of {length:.1f} s was made and uploaded: {song}
The emulator, which stands in for the service, cut it at {cut:.1f} s and went on from there.
Signed callbacks reported it ({came}), and the record was read to make sure ({polls}): a callback is only a hint.
Listen to the song and to its two ways of going on:
  {song}"""
_QUICK = (0.5, 1.0, 2.0)  # seconds to the stages of a task; what the demo shows does not need more


async def demo(*, output: OutputArg, out: Directory, _output: OutputOptions = OUTPUT) -> None:
    """Make a song, have the built-in emulator extend it, and download the result: no key, no cost.

    Example: kie-async demo --out demo
    """
    song = await to_thread.run_sync(_write_song, out)
    length = await to_thread.run_sync(files.measure, song)
    cut = round(length * _SHARE, 2)
    request = UploadExtendRequest(
        song,
        model="V5",
        continue_at=cut,
        source_duration=length,
        instrumental=True,
        style="gentle folk, plucked strings",
        title="The demo goes on",
    )
    output.say(f"a song of {length:.1f} s is made; the emulator is to go on with it after {cut:.1f} s")
    receiver = CallbackOptions(callbacks=True, callback_url="")
    async with connect(output, receiver, emulated={"timeline": _QUICK}) as session:
        result = await follow(output, session, await session.submit(request), max_wait=None)
        await download_tracks(output, session, result, out, song_of(request))
    output.value |= {"song": song, "length": length, "continue_at": cut}
    for line in _STORY.format(
        cut=cut, length=length, song=song, came=output.events[CallbackReceived], polls=output.events[Polled]
    ).splitlines():
        output.print(line)
    for path in output.value["files"]:
        output.print(f"  {path}")


def _write_song(out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    song = out / "demo-song.wav"
    song.write_bytes(emulator.demo_song())
    return song
