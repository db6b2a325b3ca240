"""The file of a download on disk; ``_download`` decides when and from where it is resumed. Everything here blocks.

It is ``NAME.part`` while it is downloaded, and ``NAME.mp3`` once it is whole. ``NAME.part.json`` holds what proves that
a later response continues the same file; without that proof the download begins anew. A part is locked while it is
written, so that two processes never mix their bytes in one: the second takes ``NAME.part-2``. The final name is given
by a hard link, which is atomic and overwrites nothing, after the bytes are on the disk: if the process is killed at any
moment, the whole file has its name, or no file has it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import BinaryIO, Self, cast

import attrs

from kie_async._fsync import give_name, sync_directory
from kie_async.errors import StorageError
from kie_async.files._audio_kinds import AUDIO_KINDS, AudioKind, ends_as_declared, kind_of

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has no such flag, and seldom symbolic links
_BINARY = getattr(os, "O_BINARY", 0)
_MAX_RESUME_INFO = 4096  # bytes


@attrs.frozen
class ResumeInfo:
    """What is known of the file that a part is the beginning of.

    Attributes:
        source: names where it comes from, without the secrets of its address.
        validator: proves by If-Range that the file is still the same.
        total: its size in bytes, if known.
    """

    source: str
    validator: str | None
    total: int | None


@attrs.define
class PartialFile:
    """An open and locked ``NAME.part``.

    Attributes:
        size: the bytes in it.
        resume_info: what it is the beginning of; None if that is not known.
        finished_path: the final file, if a process died between giving it its name and removing the part.
    """

    path: Path
    stem: str
    _file: BinaryIO = attrs.field(repr=False)
    size: int
    resume_info: ResumeInfo | None = None
    finished_path: Path | None = None

    @classmethod
    def open(cls, directory: Path, stem: str) -> Self:
        """Open and lock the part of a name, or of the next free name if another download holds it."""
        directory.mkdir(parents=True, exist_ok=True)
        directory = directory.resolve()
        for name in _numbered(f"{stem}.part"):
            path = _inside(directory, name)
            while (file := _take(path)) is not None:
                try:
                    if _is_current(file, path):
                        return cls._opened(path, stem, file)
                except BaseException:
                    file.close()
                    raise
                file.close()  # it was finished or removed by its holder meanwhile
        raise AssertionError  # pragma: no cover (names are numbered without end)

    @classmethod
    def _opened(cls, path: Path, stem: str, file: BinaryIO) -> Self:
        about = os.fstat(file.fileno())
        part = cls(path, stem, file, about.st_size)
        if about.st_nlink > 1:
            # Its bytes are somebody's file already: that of a process that died before it removed the part.
            part.finished_path = _sibling(path, stem, about)
            part.remove()
            return part if part.finished_path else cls.open(path.parent, stem)
        part.resume_info = _read_resume_info(part.resume_info_path)
        file.seek(0, os.SEEK_END)
        return part

    @property
    def resume_info_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def is_released(self) -> bool:
        return self._file.closed

    def restart(self, info: ResumeInfo) -> None:
        """Empty the part, and save what it will be the beginning of."""
        self._file.seek(0)
        self._file.truncate()
        self.size = 0
        self.resume_info = info
        _write_resume_info(self.resume_info_path, info)

    def rewrite(self, write: Callable[[BinaryIO], object]) -> None:
        """Replace the content of the part, and sync it to the disk."""
        number = self._file.fileno()
        self._file.seek(0)
        self._file.truncate()
        with os.fdopen(number, "wb", closefd=False) as file:
            write(file)
        os.fsync(number)

    def append(self, *pieces: bytes) -> None:
        """Write all of the data, or as much as there is room for."""
        left = memoryview(b"".join(pieces))
        while left:
            written = self._file.write(left)
            self.size += written
            left = left[written:]

    def free_space(self) -> int:
        """Bytes that may still be written to this disk."""
        return shutil.disk_usage(self.path.parent).free

    def kind(self) -> AudioKind | None:
        """Return the kind of audio by the content; None if it is no known audio."""
        with self.path.open("rb") as file:
            return kind_of(file)

    def is_complete(self, kind: AudioKind) -> bool | None:
        """Return whether the content ends where it declares its end; None if it declares none."""
        with self.path.open("rb") as file:
            return ends_as_declared(file, kind)

    def finish(self, suffix: str, *, keep_existing: bool = False) -> Path:
        """Sync the bytes to the disk, give them their final name, and return it. An existing file is kept.

        Args:
            suffix: of the file.
            keep_existing: take a file that has the name already for this one, instead of the next free name.
        """
        os.fsync(self._file.fileno())
        for name in _numbered(self.stem):  # pragma: no branch  # without end
            target = _inside(self.path.parent, f"{name}{suffix}")
            try:
                give_name(self.path, target)
            except FileExistsError:
                if not keep_existing:
                    continue
            break
        self.remove()
        return target

    def yield_to_existing(self) -> Path | None:
        """Return the file that has the name already, and remove the part; None if there is no such file."""
        paths = (self.path.with_name(f"{self.stem}{kind.suffix}") for kind in AUDIO_KINDS)
        existing = next((path for path in paths if path.is_file()), None)
        if existing is not None:
            self.remove()
        return existing

    def remove(self) -> None:
        """Remove the part and its resume info; the file stays under its final name, if it has one."""
        if sys.platform == "win32":  # pragma: no cover  # where an open file cannot be removed
            self._file.close()
        self.resume_info_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)  # after its resume info: while it is there, it shows that the file is done
        sync_directory(self.path.parent)
        self._file.close()  # last, so that nobody takes the part while it goes

    def release(self) -> None:
        """Unlock the part for others, and remove it if it is empty."""
        if not self._file.closed and self.size == 0:
            with contextlib.suppress(OSError):  # an empty part that stays behind harms nobody
                self.remove()
        self._file.close()


def write_new_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file as ``NAME.part``, and give it its name when it is whole; its directory is made if need be.

    A part that a killed process has left is overwritten; after an error none is left.

    Raises:
        FileExistsError: the name is taken; what has it is untouched.
        OSError: the disk refused.
    """
    part = PartialFile.open(path.parent, path.name)
    if part.finished_path is not None:  # that of a file that was finished, and is removed now
        part = PartialFile.open(path.parent, path.name)
    try:
        part.rewrite(write)
        give_name(part.path, path)
    finally:
        part.remove()


def remove_parts(directory: Path, stem: str) -> None:
    """Remove the parts of a name that nobody is writing: its file is there already."""
    for number, name in enumerate(_numbered(f"{stem}.part")):  # pragma: no branch  # without end
        path = directory / name
        if not os.path.lexists(path):
            if number:
                return
            continue
        file = _take(path)
        if file is not None and _is_current(file, path):
            PartialFile(path, stem, file, 0).remove()


def _numbered(stem: str) -> Iterator[str]:
    yield stem
    for number in count(2):  # pragma: no branch  # without end
        yield f"{stem}-{number}"


def _inside(directory: Path, name: str) -> Path:
    path = directory / name
    if path.parent.resolve() != directory:
        raise StorageError(f"{name} leads out of {directory}: remove it, or choose another directory")
    return path


def _take(path: Path) -> BinaryIO | None:
    """Open and lock; None if another download holds it."""
    if path.is_symlink():  # asked besides the flag, for systems without it
        raise StorageError(f"{path} is a symbolic link: remove it, or choose another directory")
    number = os.open(path, os.O_RDWR | os.O_CREAT | _NO_FOLLOW | _BINARY, 0o666)
    file = cast("BinaryIO", os.fdopen(number, "r+b", buffering=0))
    try:
        lock(number)
    except BlockingIOError:
        file.close()
        return None
    except BaseException:
        file.close()
        raise
    return file


def lock(number: int) -> None:
    """Lock an open file for this opening of it alone, until it is closed.

    Raises:
        BlockingIOError: another has it.
    """
    if sys.platform == "win32":  # pragma: no cover  # the same promise, kept by Windows' own means
        import msvcrt  # exists on Windows only

        os.lseek(number, 1 << 62, os.SEEK_SET)  # beyond all data: locked bytes cannot be read there
        try:
            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError from error
    else:
        import fcntl  # exists elsewhere only

        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_current(file: BinaryIO, path: Path) -> bool:
    """Tell whether the path still leads to the file that was locked."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _sibling(path: Path, stem: str, about: os.stat_result) -> Path | None:
    for other in path.parent.glob(f"{stem}*"):
        if other != path and os.path.samestat(other.lstat(), about):
            return other
    return None


def _read_resume_info(path: Path) -> ResumeInfo | None:
    """Read what a part is the beginning of; None if there is nothing that can be read."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | _NO_FOLLOW | _BINARY), "rb") as file:
            facts = json.loads(file.read(_MAX_RESUME_INFO))
        source, validator, total = (facts[field.name] for field in attrs.fields(ResumeInfo))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    sound = isinstance(source, str) and isinstance(validator, str | None) and isinstance(total, int | None)
    return ResumeInfo(source, validator, total) if sound else None


def _write_resume_info(path: Path, info: ResumeInfo) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _NO_FOLLOW | _BINARY
    with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        file.write(json.dumps(attrs.asdict(info)).encode())
