"""A digest of the files that a model is loaded from: what tells its numbers from those of other weights.

A directory can get other weights under the same name and the same revision; what was remembered of the old ones would
be wrong then, and nothing else would show it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.model_spec import ModelSpec

DIGEST_BYTES = 16
PIECE_BYTES = 1 << 28
"""Files are hashed in pieces of this size, side by side; part of what the digest is."""
_BLOCK_BYTES = 1 << 22
_MOST_THREADS = 4


@dataclass(frozen=True)
class SourceFiles:
    """The files that decide what a model computes, as they were before it was loaded.

    Attributes:
        folder: Directory of the model; files are called by where they are from there.
        files: All of them, each once, in the order of their names' bytes.
        states: Size and time of the last change of each, in nanoseconds; None for one that is not there.
    """

    folder: Path
    files: tuple[Path, ...]
    states: tuple[tuple[int, int] | None, ...]

    @classmethod
    def seen(cls, folder: Path, files: Iterable[Path]) -> SourceFiles:
        """Look at the files of a model before it is loaded.

        Args:
            folder: Directory of the model.
            files: In any order; one may come twice.
        """
        ordered = tuple(sorted(set(files), key=lambda file: _name(folder, file)))
        return cls(folder, ordered, tuple(map(_state, ordered)))

    def fingerprint(self, spec: ModelSpec) -> str:
        """The digest of the files, once the model is loaded.

        Loading and hashing read the files one after the other. If one has another size or time of change afterwards
        than it had before loading, the model is refused, because nobody can say which of the two was loaded. A file
        that is replaced under the old size and time is not noticed, nor is one that is written to after this: weights
        on a processor may stay mapped from their file, so such a write changes the model and not its fingerprint.
        Renaming a new file over the old one leaves a running model as it is.

        Args:
            spec: The model, for the message.

        Returns:
            Of `digest_of`.

        Raises:
            ModelUnsuitableError: If a file changed in between.

        Cost:
            Reads the weights once more, about 1 GB per second and core, on up to four cores.
        """
        found = digest_of(self.folder, self.files)
        now = map(_state, self.files)
        changed = [
            file.name for file, before, after in zip(self.files, self.states, now, strict=True) if before != after
        ]
        if changed:
            raise ModelUnsuitableError(
                f"model {spec.id}: {changed[0]} changed while it was loaded; expected a directory that nobody writes to"
            )
        return found


def digest_of(folder: Path, files: Iterable[Path], *, piece_bytes: int = PIECE_BYTES) -> str:
    """A digest of the names and the content of files.

    Args:
        folder: What their names are relative to; it is not part of the digest itself.
        files: In any order.
        piece_bytes: What one thread reads at a time.

    Returns:
        BLAKE2b in hexadecimal digits: over name and size of each file and the digests of its pieces, the shorter things
        with their lengths before them, so that no two sets of files make one sequence of bytes. It depends on neither
        the order of the files nor where the folder is.

    Raises:
        OSError: If a file cannot be read.

    Cost:
        About 1 GB per second and core, on up to four cores; 4 MiB of memory each.
    """
    named = sorted((_name(folder, file), file) for file in files)
    sizes = [file.stat().st_size for _, file in named]
    # A file without content has one piece as well.
    starts = [range(0, max(size, 1), piece_bytes) for size in sizes]
    pieces = [(file, start) for (_, file), begins in zip(named, starts, strict=True) for start in begins]
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "creditd-fingerprint") as threads:
        found = threads.map(lambda piece: _piece(piece[0], piece[1], piece_bytes), pieces)
        whole = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"creditd weights")
        for (name, _), size, begins in zip(named, sizes, starts, strict=True):
            whole.update(len(name).to_bytes(8, "little") + name + size.to_bytes(8, "little"))
            for _ in begins:
                whole.update(next(found))
    return whole.hexdigest()


def _piece(file: Path, start: int, length: int) -> bytes:
    """The digest of a part of a file; hashing lets other threads run."""
    digest, left = hashlib.blake2b(), length
    block = memoryview(bytearray(min(_BLOCK_BYTES, length)))
    with file.open("rb", buffering=0) as content:
        content.seek(start)
        while left and (n_read := content.readinto(block[: min(left, len(block))])):
            digest.update(block[:n_read])
            left -= n_read
    return digest.digest()


def _name(folder: Path, file: Path) -> bytes:
    """Where a file is from a folder, in the bytes that the file system has for it."""
    return os.fsencode(Path(os.path.relpath(file, folder)).as_posix())


def _state(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
