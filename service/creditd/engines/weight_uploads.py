"""Weights that arrive in shards: spooled to files with bounds, checked one by one, staged once all are there.

Nothing of a request becomes part of a path. A process has one directory below the spool and holds a lock in it; whoever
starts later removes the directories whose locks nobody holds, so a killed process leaves nothing for long.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from creditd.engines.errors import EngineOverloadedError, WeightsRefusedError, WeightVersionMismatchError
from creditd.engines.safetensors_header import read_header
from creditd.engines.weight_files import MOST_FILES, StagedWeights, adapter_config_of, checked_version, staged

CHECKSUM_BYTES = 16
"""Bytes of the BLAKE2b digest of a shard."""
MOST_OPEN = 8
"""Unfinished uploads at once; the one that was idle longest gives way."""
_MOST_FINISHED = 64
_PREFIX = "creditd-weights-"
_LOCK = "lock"
_RETRY_S = 30.0


@dataclass(frozen=True)
class ShardPlace:
    """Which part of which weights a shard is.

    Attributes:
        model: The policy.
        version: The name of the weights.
        shard: Its place, from 0.
        shards: How many there are.
        checksum: BLAKE2b of its bytes, `CHECKSUM_BYTES` long, in hexadecimal digits.
        adapter: Whether it is of an adapter by peft, whose configuration is in the metadata of shard 0.
        merged: As in `StagedWeights`.
    """

    model: str
    version: str
    shard: int
    shards: int
    checksum: str
    adapter: bool = False
    merged: bool = False


@dataclass(frozen=True)
class UploadProgress:
    """Where an upload stands after a shard.

    Attributes:
        missing: Shards that did not come yet, ascending.
        n_bytes: Bytes of the shards that are there.
        staged: The weights once all are there; whoever sent a shard again gets the same ones, and their outcome.
        starts: Whether it was this shard that completed them, so that its sender has them taken.
    """

    missing: tuple[int, ...]
    n_bytes: int
    staged: StagedWeights | None = None
    starts: bool = False


@dataclass
class _Upload:
    """Weights of which shards have come.

    Attributes:
        folder: Where they are.
        shards: How many there will be.
        adapter: As in `ShardPlace`.
        merged: As in `ShardPlace`.
        used_s: When something came last.
        arrived: Checksum and size of each shard that is there.
        writing: Bytes of shards that are being written, by their writers.
        staged: All of them, once they are there.
    """

    folder: Path
    shards: int
    adapter: bool
    merged: bool
    used_s: float
    arrived: dict[int, tuple[str, int]] = field(default_factory=dict)
    writing: dict[int, int] = field(default_factory=dict)
    staged: StagedWeights | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes that are there or on their way."""
        return sum(size for _, size in self.arrived.values()) + sum(self.writing.values())

    def is_over(self, current: str) -> bool:
        """Whether the weights were refused, or taken and replaced by others, so that they may come again."""
        if self.staged is None or not self.staged.outcome.done():
            return False
        return self.staged.outcome.exception() is not None or self.staged.version != current


class WeightUploads:
    """The spool of a process; may be used from any thread."""

    def __init__(
        self,
        spool: Path,
        *,
        max_bytes: int,
        max_shard_bytes: int,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a directory for this process, and remove those of processes that are gone.

        Args:
            spool: Directory that is there or can be made.
            max_bytes: Bytes of one set of weights at most.
            max_shard_bytes: Bytes of one shard at most.
            ttl_s: Seconds after the last sign of an unfinished upload until it is dropped.
            clock: Monotonic seconds.

        Raises:
            OSError: If the spool cannot be written to.
        """
        self._max_bytes, self._max_shard_bytes, self._ttl_s, self._clock = max_bytes, max_shard_bytes, ttl_s, clock
        self._changed = threading.Lock()
        self._open: OrderedDict[tuple[str, str], _Upload] = OrderedDict()
        self._finished: OrderedDict[tuple[str, str], _Upload] = OrderedDict()
        spool.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(spool)
        name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        made = spool.resolve() / f".{name}"
        made.mkdir(mode=0o700)
        self._lock: BinaryIO | None = (made / _LOCK).open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Under its name it is locked from the first moment on, so that nobody takes it for abandoned.
        self._folder = made.rename(made.with_name(name))

    def begin(self, place: ShardPlace, current: str) -> ShardWriter:
        """A writer for the bytes of a shard.

        Args:
            place: Which one it is.
            current: The version of the policy's weights now: weights that were taken and replaced since may come again.

        Raises:
            WeightsRefusedError: If the place is impossible, or not that of the upload as it began.
            EngineOverloadedError: If the spool has no room.
        """
        checked_version(place.version)
        if not 1 <= place.shards <= MOST_FILES or not 0 <= place.shard < place.shards:
            raise WeightsRefusedError(
                f"got shard {place.shard} of {place.shards}; expected one of 0 to shards − 1, and at most {MOST_FILES}"
            )
        if len(place.checksum) != 2 * CHECKSUM_BYTES or not set(place.checksum) <= set("0123456789abcdef"):
            raise WeightsRefusedError(
                f"got a checksum of {len(place.checksum)} characters; expected BLAKE2b of {CHECKSUM_BYTES} bytes in "
                f"{2 * CHECKSUM_BYTES} hexadecimal digits"
            )
        with self._changed:
            self._drop_old()
            upload = self._upload_of(place, current)
            writer = ShardWriter(self, place, self._folder / f"{secrets.token_hex(8)}.part")
            upload.writing[id(writer)] = 0
        return writer

    def sweep(self) -> None:
        """Drop unfinished uploads that nothing came for in time; to be called now and then."""
        with self._changed:
            self._drop_old()

    def close(self) -> None:
        """Remove all that is spooled."""
        with self._changed:
            self._open.clear()
            self._finished.clear()
            lock, self._lock = self._lock, None
        shutil.rmtree(self._folder, ignore_errors=True)
        if lock is not None:
            lock.close()

    def _upload_of(self, place: ShardPlace, current: str) -> _Upload:
        """The upload that a shard belongs to; a new one if it is the first."""
        if self._lock is None:
            raise EngineOverloadedError("the service is about to end", retry_after_s=_RETRY_S)
        key = (place.model, place.version)
        finished = self._finished.get(key)
        if finished is not None and finished.is_over(current):
            del self._finished[key]
            finished = None
        upload = finished or self._open.get(key)
        if upload is None:
            while len(self._open) >= MOST_OPEN:
                self._drop(next(iter(self._open)))
            folder = self._folder / secrets.token_hex(8)
            try:
                folder.mkdir(mode=0o700)
            except OSError as error:
                raise _no_room(error) from error
            upload = self._open[key] = _Upload(folder, place.shards, place.adapter, place.merged, self._clock())
        if (upload.shards, upload.adapter, upload.merged) != (place.shards, place.adapter, place.merged):
            raise WeightsRefusedError(
                f"got shards={place.shards}, adapter={place.adapter}, merged={place.merged}; expected "
                f"{upload.shards}, {upload.adapter}, {upload.merged} as the upload of this version began"
            )
        self._touch(key, upload)
        return upload

    def _touch(self, key: tuple[str, str], upload: _Upload) -> None:
        upload.used_s = self._clock()
        if key in self._open:
            self._open.move_to_end(key)

    def _grow(self, writer: ShardWriter, size: int) -> None:
        """Count what a writer is about to have written."""
        key = (writer.place.model, writer.place.version)
        with self._changed:
            upload = self._of_writer(writer)
            if size > self._max_shard_bytes:
                raise WeightsRefusedError(
                    f"got a shard of more than {self._max_shard_bytes} bytes; expected at most so many"
                )
            # What repeats a shard stands in its place.
            repeated = upload.arrived.get(writer.place.shard, ("", 0))[1]
            if upload.n_bytes - upload.writing[id(writer)] + size - repeated > self._max_bytes:
                raise WeightsRefusedError(f"got weights of more than {self._max_bytes} bytes; expected at most so many")
            upload.writing[id(writer)] = size
            self._touch(key, upload)

    def _of_writer(self, writer: ShardWriter) -> _Upload:
        key = (writer.place.model, writer.place.version)
        for upload in (self._open.get(key), self._finished.get(key)):
            if upload is not None and id(writer) in upload.writing:
                return upload
        raise WeightsRefusedError("the upload that the shard belongs to was dropped; expected it to begin again")

    def _arrive(self, writer: ShardWriter, size: int) -> UploadProgress:
        """Take a shard that was checked by itself."""
        place, key = writer.place, (writer.place.model, writer.place.version)
        with self._changed:
            upload = self._of_writer(writer)
            known = upload.arrived.get(place.shard)
            if known is not None and known[0] != place.checksum:
                if upload.staged is not None:
                    raise WeightVersionMismatchError(
                        "the name of this weight_version stands for other bytes; expected a name that was never used"
                    )
                raise WeightsRefusedError(
                    f"got other bytes for shard {place.shard} than before; expected those of this version"
                )
            if known is None:
                writer.path.replace(upload.folder / f"{place.shard}.safetensors")
                upload.arrived[place.shard] = (place.checksum, size)
            self._touch(key, upload)
            starts = upload.staged is None and len(upload.arrived) == upload.shards
            if starts:
                self._finish(key, upload)
            missing = tuple(shard for shard in range(upload.shards) if shard not in upload.arrived)
            n_bytes = sum(size for _, size in upload.arrived.values())
            return UploadProgress(missing, n_bytes, upload.staged, starts)

    def _finish(self, key: tuple[str, str], upload: _Upload) -> None:
        """Stage an upload whose shards are all there; one that does not hold together is dropped."""
        files = [(upload.folder / f"{shard}.safetensors", f"shard {shard}") for shard in range(upload.shards)]
        try:
            config = None
            if upload.adapter:
                with files[0][0].open("rb") as first:
                    config = adapter_config_of(read_header(first.fileno(), "shard 0").metadata, "shard 0")
            upload.staged = staged(key[1], files, adapter=config, merged=upload.merged, spool=upload.folder)
        except BaseException:
            self._drop(key)
            raise
        self._finished[key] = self._open.pop(key)
        while len(self._finished) > _MOST_FINISHED:
            self._finished.popitem(last=False)

    def _leave(self, writer: ShardWriter) -> None:
        """Forget a writer."""
        with self._changed:
            for uploads in (self._open, self._finished):
                upload = uploads.get((writer.place.model, writer.place.version))
                if upload is not None:
                    upload.writing.pop(id(writer), None)

    def _drop_old(self) -> None:
        now = self._clock()
        for key in [key for key, upload in self._open.items() if now - upload.used_s > self._ttl_s]:
            self._drop(key)

    def _drop(self, key: tuple[str, str]) -> None:
        shutil.rmtree(self._open.pop(key).folder, ignore_errors=True)


class ShardWriter:
    """The bytes of one shard on their way into a file; used by one thread at a time."""

    def __init__(self, uploads: WeightUploads, place: ShardPlace, path: Path) -> None:
        """Open the file; see `WeightUploads.begin`."""
        self.place, self.path = place, path
        self._uploads, self._size = uploads, 0
        self._digest = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
        self._file: BinaryIO | None = None

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Take the next bytes.

        Raises:
            WeightsRefusedError: If the shard or the weights become too large, or the upload was dropped meanwhile.
            EngineOverloadedError: If the spool has no room.

        Cost:
            Hashes and writes them; nothing is kept in memory.
        """
        self._uploads._grow(self, self._size + len(piece))  # noqa: SLF001 - one class in two parts
        self._size += len(piece)
        self._digest.update(piece)
        try:
            if self._file is None:
                self._file = self.path.open("xb", buffering=0)
            rest = memoryview(piece)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _no_room(error) from error

    def finish(self) -> UploadProgress:
        """Take the shard as it is.

        Returns:
            Where the upload stands with it.

        Raises:
            WeightsRefusedError: If its checksum is another, it is no whole safetensors file, it has other bytes than
                the same shard before, or it completes an upload whose shards do not fit each other.
            WeightVersionMismatchError: If it has other bytes than the same shard of weights that are complete.

        Cost:
            Reads the header; the last shard's sender waits for those of all shards.
        """
        digest = self._digest.hexdigest()
        try:
            if digest != self.place.checksum:
                raise WeightsRefusedError(
                    f"got {self._size} bytes with the checksum {digest}; expected the one that was sent with them"
                )
            called = f"shard {self.place.shard}"
            if self._file is None:
                raise WeightsRefusedError(f"{called}: got no bytes; expected a safetensors file")
            self._file.close()
            with self.path.open("rb") as written:
                read_header(written.fileno(), called)
            return self._uploads._arrive(self, self._size)  # noqa: SLF001 - as above
        finally:
            self.abort()

    def abort(self) -> None:
        """Remove what was written, unless it was taken; may be called at any time and again."""
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)
        self._uploads._leave(self)  # noqa: SLF001 - as above


def _no_room(error: OSError) -> EngineOverloadedError:
    """The spool cannot take more: a full disk, above all."""
    return EngineOverloadedError(
        f"the spool for weights cannot be written to ({os.strerror(error.errno or 0)})", retry_after_s=_RETRY_S
    )


def _remove_abandoned(spool: Path) -> None:
    """Remove the directories of processes that are gone: nobody holds their locks any more."""
    for folder in spool.glob(f"{_PREFIX}*"):
        if folder.is_symlink() or not folder.is_dir():
            continue
        try:
            with (folder / _LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # it is in use, is just being made, or belongs to somebody else
