from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import os
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import audio_files
import av
import pytest
from audio_files import HTML, ID3, PNG, SECONDS
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from kie_async.errors import AudioError, StorageError
from kie_async.files import _audio_kinds, hash_source, measure


def written(directory: Path, data: bytes, name: str = "song.mp3") -> Path:
    path = directory / name
    path.write_bytes(data)
    return path


def with_padding(flac: bytes) -> bytes:
    """A flac with 9,000 zero bytes behind its first block of metadata, which is never the last."""
    return flac[:42] + b"\x01" + (9000).to_bytes(3, "big") + bytes(9000) + flac[42:]


WHOLE = {
    "mp3": audio_files.mp3,
    "mp3 with another name": lambda: audio_files.encoded("libmp3lame", "mp3", title="Ünïcode\N{SNOWMAN}"),
    "mp3, no Xing header": audio_files.mp3_without_xing,
    "mp3 with an odd title": lambda: audio_files.with_odd_title(audio_files.mp3_without_xing()),
    "mp3 with a cover": lambda: audio_files.with_cover(audio_files.mp3()),
    "mp3 with tags at its end": lambda: audio_files.mp3() + b"TAG".ljust(128, b"\0"),
    "mp3 with another song's tag in the middle": lambda: (
        audio_files.mp3(10.0) + audio_files.with_cover(audio_files.mp3(10.0))
    ),
    "mp3 of two songs with zeros between them": lambda: audio_files.mp3(10.0) + bytes(2048) + audio_files.mp3(10.0),
    "mp3 of a low sample rate": lambda: audio_files.encoded("libmp3lame", "mp3", rate=22050),
    "mp3 with padding after its tag": lambda: ID3 + bytes(1000) + audio_files.mp3_without_xing(),
    "wav": audio_files.wav,
    "wav from a pipe": lambda: audio_files.wav_that_claims(0xFFFFFFFF),
    "wav that claims hours": lambda: audio_files.wav_that_claims(0xFFFFFFF0),
    "wav that claims nothing": lambda: audio_files.wav_that_claims(0),
    "flac": audio_files.flac,
    "flac with padding in its header": lambda: with_padding(audio_files.flac()),
    "flac that claims nothing": lambda: audio_files.flac_that_claims(0),
    "flac that claims weeks": lambda: audio_files.flac_that_claims((1 << 36) - 1),
    "aac": audio_files.aac,
    "m4a": audio_files.m4a,
    "m4a, index first": lambda: audio_files.m4a(index_first=True),
    "m4a that claims hours": lambda: audio_files.m4a_that_claims(1_000_000),
    "m4a that claims no time": lambda: audio_files.m4a_that_claims(0),
    "m4a whose last packet claims minutes": lambda: audio_files.m4a_that_claims(1024, last=10_000_000),
    "m4a that claims an instant": lambda: audio_files.m4a_that_claims(1),
    "ogg": audio_files.ogg,
    "ogg (opus)": lambda: audio_files.encoded("libopus", "ogg", rate=48_000),
    "aiff": audio_files.aiff,
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_is_as_long_as_its_audio_whatever_it_claims(name: str, tmp_path: Path) -> None:
    assert measure(written(tmp_path, WHOLE[name]())) == pytest.approx(SECONDS, abs=0.15)


HALVES = {
    "mp3": (audio_files.mp3, 0.3),
    "wav": (audio_files.wav, 0.1),
    "aac": (audio_files.aac, 4.0),  # a variable bit rate: half of the bytes is not half of the time
    "flac": (audio_files.flac, 4.0),
    "ogg": (audio_files.ogg, 4.0),
    "aiff": (audio_files.aiff, 0.1),
    "m4a, index first": (lambda: audio_files.m4a(index_first=True), 4.0),
}


@pytest.mark.parametrize("name", HALVES)
def test_half_a_file_is_not_as_long_as_its_header_says(name: str, tmp_path: Path) -> None:
    make, tolerance = HALVES[name]
    data = make()
    assert measure(written(tmp_path, data[: len(data) // 2])) == pytest.approx(SECONDS / 2, abs=tolerance)


@pytest.mark.parametrize(
    "make",
    [
        audio_files.mp3,
        audio_files.flac,
        audio_files.ogg,
        lambda: audio_files.m4a(index_first=True),
    ],
)
def test_what_is_missing_in_the_middle_does_not_count(make: Callable[[], bytes], tmp_path: Path) -> None:
    data = make()
    third = len(data) // 3
    assert 10 < measure(written(tmp_path, data[:third] + data[2 * third :])) < 15


def test_an_ogg_of_two_streams_is_as_long_as_both(tmp_path: Path) -> None:
    assert measure(written(tmp_path, audio_files.ogg() * 2)) == pytest.approx(2 * SECONDS, abs=0.15)


@pytest.mark.parametrize("name", WHOLE)
def test_a_source_is_measured_and_hashed_at_once(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, WHOLE[name]())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert hash_source(path, measured=True) == (digest, measure(path))
    assert hash_source(path, measured=False) == (digest, None)


def test_what_was_replaced_by_a_page_does_not_count(tmp_path: Path) -> None:
    data = audio_files.mp3()
    assert measure(written(tmp_path, data[: len(data) // 2] + HTML)) == pytest.approx(SECONDS / 2, abs=0.3)


@pytest.mark.parametrize("tag", [b"", b"TAG".ljust(128, b"\0")])
def test_zeros_in_place_of_the_end_do_not_count(tag: bytes, tmp_path: Path) -> None:
    data = audio_files.mp3()
    half = len(data) // 2
    assert measure(written(tmp_path, data[:half] + bytes(half) + tag)) == pytest.approx(SECONDS / 2, abs=0.3)


@pytest.mark.parametrize("tag", [b"", b"TAG".ljust(128, b"\0")])
def test_zeros_in_place_of_the_end_of_a_flac_do_not_count(tag: bytes, tmp_path: Path) -> None:
    data = audio_files.flac()
    half = len(data) // 2
    assert measure(written(tmp_path, data[:half] + bytes(half) + tag)) == pytest.approx(SECONDS / 2, abs=1.0)


@pytest.mark.parametrize("lost", [8192, 400_000])
def test_a_flac_that_lost_audio_in_its_middle_is_refused(lost: int, tmp_path: Path) -> None:
    data = audio_files.flac()
    end = len(data) - 20_000
    path = written(tmp_path, data[: end - lost] + bytes(lost) + data[end:])
    with pytest.raises(AudioError, match=r"has zeros in the place of audio in its middle: copy or download it again"):
        measure(path)


@pytest.mark.parametrize("lost", [1024, 20_000, 300_000])
def test_an_mp3_that_lost_audio_in_its_middle_is_refused(lost: int, tmp_path: Path) -> None:
    data = audio_files.mp3(2 * SECONDS)
    end = len(data) - 20_000
    path = written(tmp_path, data[: end - lost] + bytes(lost) + data[end:])
    with pytest.raises(
        AudioError, match=r"song\.mp3 has zeros in the place of audio from 0:\d\d.* on: copy or download"
    ):
        measure(path)


@pytest.mark.parametrize(
    ("data", "matter"),
    [
        (b"", "no audio of a known kind"),
        (HTML, "no audio of a known kind"),
        (PNG, "no audio of a known kind"),
        (ID3, "no audio of a known kind"),
        (ID3 * 20, "no audio of a known kind"),
        (ID3 + HTML, "no audio of a known kind"),
        (b"\xff\xfe<\0h\0t\0m\0l\0>\0" * 50, "no audio of a known kind"),
        (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n" * 5, "no audio of a known kind"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "no audio of a known kind"),
        (b"fLaC" + bytes(500), "damaged"),
        (b"RIFF\0\0\0\0WAVE" + bytes(500), "damaged"),
        (b"OggS" + bytes(500), "damaged"),
    ],
)
def test_what_is_no_audio_is_never_given_a_length(data: bytes, matter: str, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=matter):
        measure(written(tmp_path, data))


def test_m4a_without_its_index_is_damaged(tmp_path: Path) -> None:
    data = audio_files.m4a()
    with pytest.raises(AudioError, match=r"song\.mp3 is damaged.*convert"):
        measure(written(tmp_path, data[: len(data) // 2]))


def test_a_wav_with_a_header_alone_holds_no_audio(tmp_path: Path) -> None:
    data = audio_files.wav()
    with pytest.raises(AudioError, match="holds no audio"):
        measure(written(tmp_path, data[: data.index(b"data") + 8]))


def test_a_film_without_sound_holds_no_audio(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="holds no audio"):
        measure(written(tmp_path, audio_files.silent_film()))


def test_a_format_that_no_decoder_knows_is_not_guessed_at(tmp_path: Path) -> None:
    data = bytearray(audio_files.wav())
    at = data.index(b"fmt ") + 8
    data[at : at + 2] = b"\xef\xbe"
    with pytest.raises(AudioError, match="cannot be decoded"):
        measure(written(tmp_path, bytes(data)))


def test_an_edit_list_that_leaves_out_everything_leaves_no_audio(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="holds no audio"):
        measure(written(tmp_path, audio_files.m4a_that_claims(1_000_000, edit_list=True)))


def test_what_an_edit_list_leaves_is_all_that_counts(tmp_path: Path) -> None:
    assert measure(written(tmp_path, audio_files.m4a_that_claims(1, edit_list=True))) < 0.1
    assert measure(written(tmp_path, audio_files.m4a_cut_by_its_edit_list(5, 7000))) == pytest.approx(7.0, abs=0.15)


def test_a_length_beyond_belief_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, audio_files.wav_that_claims(0))
    os.truncate(path, 13 * 3600 * 2 * audio_files.RATE)  # mono, two bytes a sample; zeros take no room on the disk
    with pytest.raises(AudioError, match="absurd"):
        measure(path)


def test_a_file_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, audio_files.flac())
    monkeypatch.setattr(time, "monotonic", itertools.count(0.0, 31.0).__next__)
    with pytest.raises(AudioError, match="too long"):
        measure(path)


def test_a_long_mp3_is_measured_as_a_short_one(tmp_path: Path) -> None:
    assert measure(written(tmp_path, audio_files.mp3() * 24)) == pytest.approx(24 * SECONDS, rel=0.01)


def test_without_the_library_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(AudioError, match=r"kie_async\[audio\].*source_duration="):
        measure(written(tmp_path, audio_files.mp3()))


@pytest.mark.parametrize(
    "fault", [TypeError("open() got an unexpected keyword"), ValueError("x"), ImportError("libav")]
)
def test_a_library_that_fails_is_an_error_of_ours(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_words: object, **_options: object) -> None:
        raise fault

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(
        AudioError, match=rf"song\.mp3 could not be measured.*{type(fault).__name__}.*source_duration="
    ) as caught:
        measure(written(tmp_path, audio_files.flac()))
    assert caught.value.__cause__ is fault
    assert caught.value.charged == "no"


@pytest.mark.parametrize("name", ["missing.mp3", ".", "song.mp3/x"])
def test_what_cannot_be_read_is_the_disks_matter(name: str, tmp_path: Path) -> None:
    written(tmp_path, audio_files.mp3())
    with pytest.raises(StorageError):
        measure(tmp_path / name)


@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    make=st.sampled_from([audio_files.mp3, audio_files.flac, audio_files.m4a, audio_files.ogg, audio_files.wav]),
    seed=st.integers(0, 2**32),
    flips=st.integers(0, 200),
    end=st.floats(0, 1),
)
def test_a_mangled_file_has_a_length_or_an_error_of_ours(
    make: Callable[[], bytes], seed: int, flips: int, end: float, tmp_path: Path
) -> None:
    data = bytearray(make())
    dice = random.Random(seed)  # hypothesis gives the seed
    for _ in range(flips):
        data[dice.randrange(min(len(data), dice.choice((64, 4096, len(data)))))] = dice.randrange(256)
    with contextlib.suppress(AudioError):
        assert 0 < measure(written(tmp_path, bytes(data[: int(len(data) * end)]))) <= 12 * 3600


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"RIFF\0\0\0\0WAVEfmt \0", _audio_kinds.WAV),
        (b"RF64\0\0\0\0WAVEfmt \0", _audio_kinds.WAV),
        (b"RIFF\0\0\0\0WEBPVP8 \0", None),
        (b"FORM\0\0\0\0AIFCCOMM\0", _audio_kinds.AIFF),
        (b"\0\0\0\x20ftypM4A \0\0\0\0\0", _audio_kinds.M4A),
        (b"\0\0\0\x20ftypheic\0\0\0\0\0", None),
        (b"\0\0\0\x20ftypavif\0\0\0\0\0", None),
        (b"\xff\xf1" + bytes(20), _audio_kinds.AAC),
        (b"\xff\xfb\x90\x00" + bytes(20), _audio_kinds.MP3),
        (b"\xff\xf3\x90\x00" + bytes(20), _audio_kinds.MP3),
        (b"\xff\xe3\x90\x00" + bytes(20), _audio_kinds.MP3),
        (b"\xff\xeb\x90\x00" + bytes(20), None),  # a version that is reserved
        (b"\xff\xfb\xf0\x00" + bytes(20), None),  # a bit rate that is
        (b"\xff\xfb\x00\x00" + bytes(20), None),  # none
        (b"\xff\xfb\x9c\x00" + bytes(20), None),  # a sample rate that is reserved
        (b"\xff\xfd\x90\x00" + bytes(20), None),  # layer II
        (b"\xff\xfb\x90", None),
    ],
)
def test_a_kind_is_told_by_its_first_bytes(head: bytes, kind: _audio_kinds.AudioKind | None, tmp_path: Path) -> None:
    assert _audio_kinds.begins_like_audio(head) is (kind is not None)
    with written(tmp_path, head).open("rb") as file:
        assert _audio_kinds.kind_of(file) is kind


def test_a_tag_with_a_footer_is_skipped_whole(tmp_path: Path) -> None:
    tag = b"ID3\x04\x00\x10" + struct.pack("4B", 0, 0, 0, 100) + b"x" * 100 + b"3DI" + bytes(7)
    with written(tmp_path, tag + audio_files.flac()).open("rb") as file:
        assert _audio_kinds.kind_of(file) is _audio_kinds.FLAC
