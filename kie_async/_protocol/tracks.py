"""The tracks of a task, found by their shape, wherever the service puts them.

record-info has them in ``response.sunoData``, the jobs route in ``response.data``, in the JSON text ``resultJson``
(``data``, or ``resultObject.data`` beside a list of bare addresses), a callback in ``data.data``. Older pages and
other members of the family name still other places. So the usual place is tried first, and else all are searched.
An object is worth more than a bare address, which has no id and so cannot be extended again. What other products
make (lyrics, wav, stems, videos, pictures) is no track.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import attrs

from kie_async._protocol.json_values import (
    AUDIO_KEYS,
    TRACK_KEYS,
    Json,
    as_address,
    as_text,
    load_tolerantly,
    track_fields,
)
from kie_async.errors import BadResponseError
from kie_async.models import Track

Find: TypeAlias = dict[str, Any] | str  # an object with the shape of a track, or a bare address

_DEPTH = 9  # of objects, lists and JSON inside text; six is the deepest known
# Echoes of the request, and what is about other audio than the tracks that were made.
_ELSEWHERE = re.compile(
    r"param|input|request|(?<!re)source|origin|parent|upload(?!_?(?:and_?)?extend)|reference|history|persona|error|fail"
    r"|lyric|\bstem|_stem|vocal|instrumental|wav|watermark",
    re.IGNORECASE,
)
# Keys under which text is the address of a result.
_ADDRESS_KEYS = re.compile(
    r"(?:(?:result|audio|song|music|track|media)_?)?urls?|(?:suno_?)?data|audios?|songs?|tracks?|clips?|outputs?"
    r"|results?|result_?json|result_?object|response|[0-9]+",
    re.IGNORECASE,
)
_MUSIC = re.compile(r"(?:ai[-_]?)?music|suno|chirp-|v[0-9]|extend|upload_extend|generate\Z", re.IGNORECASE)
_OTHER_PRODUCT = re.compile(
    r"lyric|wav|mp4|video|midi|image|speech|voice|separat|removal|stem|timestamp|cover.?art|persona", re.IGNORECASE
)
_FINISHED_KEYS = ("audio_url", "audioUrl", "source_audio_url", "sourceAudioUrl")
_PLAYABLE = frozenset({"", "mp3", "m4a", "aac", "ogg", "opus", "flac"})  # suffixes; stream addresses have none


def read_tracks(record: Mapping[str, Any]) -> tuple[Track, ...]:
    """Read the tracks of a record, or of a callback's ``data``. Placeholders are no tracks."""
    response = record.get("response")
    usual = response.get("sunoData") if isinstance(response, dict) else record.get("data")
    if record.get("resultJson"):  # there may be more of them
        return _search(record)
    return _finished(usual) or _search(record)


def _finished(listed: object) -> tuple[Track, ...]:
    """The tracks of a list in the usual place, if each of them is finished."""
    if not isinstance(listed, list):
        return ()
    tracks = [Track(**track_fields(each)) for each in listed if isinstance(each, dict)]
    if len({(track.id, track.audio_url) for track in tracks}) < len(listed):
        return ()
    return tuple(tracks) if all(track.id and track.audio_url for track in tracks) else ()


def _search(record: Mapping[str, Any]) -> tuple[Track, ...]:
    """The tracks of the place that has most of their audio, completed from the other places."""
    names = [as_text(record.get(name)) or "" for name in ("model", "operationType", "operation_type", "type")]
    is_music = any(map(_MUSIC.match, names))
    is_other = any(map(_OTHER_PRODUCT.search, names)) and "extend" not in " ".join(names).lower()
    if is_other or (names[0] and not is_music):  # the jobs route serves all products
        return ()
    places: list[list[Track]] = []
    addresses: dict[str, None] = {}
    for key, held in record.items():
        finds = list(_under(key, held, _DEPTH))
        addresses |= dict.fromkeys(find for find in finds if isinstance(find, str))
        found = [Track(**track_fields(find)) for find in finds if isinstance(find, dict)]
        if tracks := _merged(track for track in found if _is_song(track, is_music=is_music)):
            places.append(tracks)
    own = Track(**track_fields(record))
    if not places and own.audio_url and _is_song(own, is_music=is_music):
        places.append([own])
    playable = [url for url in addresses if _is_audio(url, is_music=is_music)]
    if not places:
        return tuple(Track(audio_url=url) for url in playable)
    best = max(places, key=_rank)
    known = _merged([*best, *(track for place in places if place is not best for track in place)])[: len(best)]
    return tuple(_with_addresses(known, playable))


def _rank(tracks: list[Track]) -> tuple[bool, int]:
    finished = sum(track.audio_url is not None for track in tracks)
    return finished == len(tracks), finished


# ---------------------------------------------------------------- where they may be


def _under(key: str, held: object, depth: int, *, named: bool = True, listed: bool = False) -> Iterator[Find]:
    """What may be a track under a key; ``named`` tells whether text there may be the address of a result."""
    if not held or not depth or _ELSEWHERE.search(key):
        return
    named = named and _ADDRESS_KEYS.fullmatch(key) is not None
    if isinstance(held, str):
        yield from _in_text(key, held, depth, named=named)
    elif isinstance(held, list):
        for each in held:
            yield from _under(key, each, depth - 1, named=named, listed=True)
    elif isinstance(held, dict):
        yield from _in_object(held, depth, named=named, listed=listed or key.isdigit())


def _in_text(key: str, text: str, depth: int, *, named: bool) -> Iterator[Find]:
    if text.lstrip()[:1] in {"{", "[", '"'}:
        yield from _under(key, unpacked(text), depth - 1, named=named)
    elif named:
        yield from filter(None, map(as_address, re.split(r"[,;\s]+(?=https?://)", text)))


def _in_object(held: dict[str, Any], depth: int, *, named: bool, listed: bool) -> Iterator[Find]:
    """An object that is a track, or else what it holds."""
    if any(value and key.startswith("stem") for key, value in held.items()):
        return
    has_id = bool(as_text(held.get("id")))
    if has_id and not AUDIO_KEYS.isdisjoint(held):
        yield held
        return
    inner = [
        find
        for key, value in held.items()
        if key not in AUDIO_KEYS or isinstance(value, list)
        for find in _under(key, value, depth - 1, named=named or not key.isdigit())
    ]
    has_audio = any(as_address(held.get(key)) for key in _FINISHED_KEYS)
    is_placeholder = has_id and listed and held.keys() <= TRACK_KEYS
    if (has_audio or is_placeholder) and not any(isinstance(find, dict) for find in inner):
        yield held
    else:
        yield from inner


def unpacked(text: str) -> Json:
    """JSON inside text; None if it is none."""
    try:
        return load_tolerantly(text.encode("utf-8", "replace"))
    except BadResponseError:
        return None


# ---------------------------------------------------------------- what is known of each


def _merged(found: Iterable[Track]) -> list[Track]:
    """Each track once, in the order of the first; what one place does not say of it is taken from the next."""
    tracks: list[Track] = []
    position: dict[str, int] = {}  # by the id, and by the address of the audio
    for track in found:
        known = position.get(track.id, -1)
        if known < 0 and track.audio_url:
            known = position.get(track.audio_url, -1)
            if known >= 0 and track.id and tracks[known].id:
                known = -1  # two takes can have the same address
        if known < 0:
            known = len(tracks)
            tracks.append(track)
        else:
            tracks[known] = _completed(tracks[known], track)
        position |= {name: known for name in (tracks[known].id, tracks[known].audio_url) if name}
    return tracks


def _completed(track: Track, other: Track) -> Track:
    """A track with what another place says of it besides."""
    more = {name: value for name, value in attrs.asdict(other, recurse=False).items() if not getattr(track, name)}
    return attrs.evolve(track, **more)


def _with_addresses(tracks: list[Track], addresses: list[str]) -> Iterator[Track]:
    """The tracks; one without audio takes the bare address that bears its id, or the one in its place in the list."""
    by_name = {_name(url).partition(".")[0]: url for url in addresses}
    in_order = len(tracks) == len(addresses) and not any(track.audio_url for track in tracks)
    for place, track in enumerate(tracks):
        url = track.audio_url or by_name.get(track.id) or (addresses[place] if in_order else None)
        yield track if url == track.audio_url else attrs.evolve(track, audio_url=url)


def _name(url: str) -> str:
    """The last part of an address's path."""
    return re.split(r"[?#]", url, maxsplit=1)[0].partition("://")[2].partition("/")[2].rpartition("/")[2]


def _is_song(track: Track, *, is_music: bool) -> bool:
    """Whether an object can be a track: a song that was made into a wav has no id of its own."""
    return bool(track.id) or is_music or not _name(track.audio_url or "").lower().endswith(".wav")


def _is_audio(url: str, *, is_music: bool) -> bool:
    """Whether a bare address can be a track's; a wav can only where the task is known to make music."""
    name = _name(url)
    suffix = name.rpartition(".")[2].lower() if "." in name else ""
    return bool(name) and (suffix in _PLAYABLE or (is_music and suffix == "wav"))
