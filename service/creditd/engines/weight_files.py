"""Weights that are to become a policy's, as files: found below a root, each tensor in one place, nothing loaded yet."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from creditd.engines.errors import WeightsRefusedError
from creditd.engines.fingerprints import digest_of
from creditd.engines.safetensors_header import StoredTensor, read_header, shown

State: TypeAlias = tuple[int, int, int, int]

MOST_VERSION = 256
"""Characters of the longest name of a version."""
MOST_FILES = 10_000
"""Files, or shards, that one set of weights comes in at most."""
MOST_CONFIG_BYTES = 1 << 16
"""Bytes of the configuration of an adapter."""
_MOST_INDEX_BYTES = 1 << 26
_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
CONFIG_KEY = "adapter_config"
"""Where the metadata of an uploaded adapter has its configuration."""


@dataclass(frozen=True)
class SwapReport:
    """What a change of weights came to.

    Attributes:
        weight_version: The version that is current now.
        n_bytes: Bytes of the tensors that were taken.
        n_tensors: Number of them.
        cast_from: Types of numbers that were cast to the model's own, as torch names them; None if none was.
        verify_s: Seconds of verification, during which the engine answers.
        swap_s: Seconds of the engine's thread, during which nothing else is run.
        skipped: Whether these very weights were current already, so that nothing was copied.
    """

    weight_version: str
    n_bytes: int
    n_tensors: int
    cast_from: str | None
    verify_s: float
    swap_s: float
    skipped: bool


@dataclass(frozen=True)
class WeightFile:
    """A safetensors file as it was when it was looked at.

    Attributes:
        path: Resolved.
        called: What messages call it: never a path of the machine.
        state: Device, node, size and time of the last change in nanoseconds.
    """

    path: Path
    called: str
    state: State


@dataclass(frozen=True)
class StagedWeights:
    """Weights that wait to be verified and taken.

    Attributes:
        version: Their name; names are never used again for other bytes.
        files: All files.
        tensors: By name: which file, by its place in `files`, and where in it.
        adapter: Configuration of an adapter by peft; None: the weights of the whole model.
        merged: Whether an adapter is added to the weights, or computed beside them.
        spool: Directory that goes once they are taken or refused; None: the files stay.
        outcome: The report to come, or an `EngineError`; fulfilled by whoever takes them, and never cancelled.
    """

    version: str
    files: tuple[WeightFile, ...]
    tensors: Mapping[str, tuple[int, StoredTensor]]
    adapter: Mapping[str, Any] | None = None
    merged: bool = False
    spool: Path | None = None
    outcome: Future[SwapReport] = field(default_factory=Future, compare=False)

    def __post_init__(self) -> None:
        """Nobody who waits for the outcome can cancel it for the others."""
        self.outcome.set_running_or_notify_cancel()

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.n_bytes for _, tensor in self.tensors.values())

    @contextmanager
    def opened(self) -> Iterator[tuple[int, ...]]:
        """Descriptors of all files, looked at again: each is the file that was staged, unchanged.

        Raises:
            WeightsRefusedError: If one is gone, was replaced or was written to.
        """
        descriptors: list[int] = []
        try:
            for file in self.files:
                descriptor, state = _opened(file.path, file.called)
                descriptors.append(descriptor)
                if state != file.state:
                    raise WeightsRefusedError(
                        f"{file.called} changed after it was named; expected a file that nobody writes to"
                    )
            yield tuple(descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def is_unchanged(self, descriptors: Sequence[int]) -> bool:
        """Whether nobody wrote to the files since they were staged, as far as their size and time of change tell."""
        return all(state_of(one) == file.state for one, file in zip(descriptors, self.files, strict=True))

    def demand_unchanged(self, descriptors: Sequence[int]) -> None:
        """Refuse files that somebody wrote to.

        Raises:
            WeightsRefusedError: If there is one.
        """
        if not self.is_unchanged(descriptors):
            raise WeightsRefusedError("a file changed while it was verified; expected files that nobody writes to")

    def release(self) -> None:
        """Remove what was spooled, if anything; weights below a root stay."""
        if self.spool is not None:
            shutil.rmtree(self.spool, ignore_errors=True)


def state_of(descriptor: int) -> State:
    """Device, node, size and time of the last change of an open file."""
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def checked_version(version: str) -> str:
    """A name for weights, as it is.

    Raises:
        WeightsRefusedError: If it is empty, too long, or has characters that a line of a log cannot have.
    """
    if not 1 <= len(version) <= MOST_VERSION or not version.isprintable():
        raise WeightsRefusedError(
            f"got a weight_version of {len(version)} characters; expected 1 to {MOST_VERSION} that can be printed"
        )
    return version


def staged_from_path(
    root: Path,
    path: str,
    version: str,
    *,
    adapter: bool = False,
    merged: bool = False,
    checksum: str | None = None,
) -> StagedWeights:
    """Weights below a root.

    Args:
        root: Directory that weights may be in.
        path: A safetensors file, or a directory as `save_pretrained` writes it, from the root. Links are followed and
            what they lead to has to be below the root as well.
        version: Their name.
        adapter: Whether it is an adapter by peft: a directory with `adapter_config.json` and
            `adapter_model.safetensors`.
        merged: As in `StagedWeights`.
        checksum: `digest_of` of the directory and its files that are read; None: it is not checked.

    Returns:
        Weights whose headers were read and hold together.

    Raises:
        WeightsRefusedError: If there are none, they are outside, they do not hold together, or the checksum is another.

    Cost:
        Reads the headers; with a checksum also everything, as `digest_of` does.
    """
    checked_version(version)
    inside = root.resolve()
    place = _below(inside, inside / path, "the path")
    if place.is_dir():
        folder, names = place, _names(place, inside, adapter=adapter)
    elif adapter:
        raise WeightsRefusedError(f"got no directory for an adapter; expected one with {ADAPTER_CONFIG} and {_ADAPTER}")
    else:
        folder, names = place.parent, [place.name]
    files = [(_below(inside, folder / name, shown(name)), name) for name in names]
    config = _json(_below(inside, folder / ADAPTER_CONFIG, ADAPTER_CONFIG), MOST_CONFIG_BYTES) if adapter else None
    found = staged(version, files, adapter=config, merged=merged)
    if checksum is not None:
        digested = [folder / name for name in names] + ([folder / ADAPTER_CONFIG] if adapter else [])
        if (digest := digest_of(folder, digested)) != checksum:
            raise WeightsRefusedError(f"got files with the checksum {digest}; expected the one that was sent with them")
    return found


def staged(
    version: str,
    files: Sequence[tuple[Path, str]],
    *,
    adapter: Mapping[str, Any] | None,
    merged: bool,
    spool: Path | None = None,
) -> StagedWeights:
    """Weights of these files.

    Args:
        version: Their name.
        files: Resolved paths, and what messages call each.
        adapter: As in `StagedWeights`.
        merged: As in `StagedWeights`.
        spool: As in `StagedWeights`.

    Raises:
        WeightsRefusedError: If a file is no whole safetensors file, two hold a tensor of the same name, or none any.

    Cost:
        Reads the headers.
    """
    seen: list[WeightFile] = []
    tensors: dict[str, tuple[int, StoredTensor]] = {}
    for place, (path, called) in enumerate(files):
        descriptor, state = _opened(path, called)
        try:
            header = read_header(descriptor, called)
        finally:
            os.close(descriptor)
        seen.append(WeightFile(path, called, state))
        for name, tensor in header.tensors.items():
            if name in tensors:
                other = seen[tensors[name][0]].called
                raise WeightsRefusedError(f"got {shown(name)} in {other} and in {called}; expected it once")
            tensors[name] = (place, tensor)
    if not tensors:
        raise WeightsRefusedError("got no tensors; expected the weights of a model or of an adapter")
    return StagedWeights(version, tuple(seen), tensors, adapter, merged, spool)


def adapter_config_of(metadata: Mapping[str, str], called: str) -> Mapping[str, Any]:
    """The configuration of an adapter in the metadata of its first shard.

    Raises:
        WeightsRefusedError: If there is none, or it is no JSON object of `MOST_CONFIG_BYTES` at most.
    """
    text = metadata.get(CONFIG_KEY)
    if text is None:
        raise WeightsRefusedError(f"{called}: got no {CONFIG_KEY} in its metadata; expected that of the adapter")
    return _object(text, f"{CONFIG_KEY} of {called}", MOST_CONFIG_BYTES)


def _below(inside: Path, path: Path, called: str) -> Path:
    """Where a path leads, which has to be below a resolved root."""
    try:
        found = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsRefusedError(f"{called} leads to nothing below the directory for weights") from error
    if not found.is_relative_to(inside):
        raise WeightsRefusedError(f"{called} leads outside the directory for weights")
    return found


def _names(folder: Path, inside: Path, *, adapter: bool) -> list[str]:
    """The files with weights in a directory, as `save_pretrained` names them."""
    if adapter:
        return [_ADAPTER]
    if (folder / _ONE_FILE).is_file():
        return [_ONE_FILE]
    if (folder / _INDEX).is_file():
        shards = _json(_below(inside, folder / _INDEX, _INDEX), _MOST_INDEX_BYTES).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise WeightsRefusedError(f"got {_INDEX} without a weight_map; expected what save_pretrained wrote")
        names = sorted(set(shards.values()))
        if any(name != Path(name).name or name in {"", ".", ".."} for name in names):
            raise WeightsRefusedError(f"{_INDEX} names a file that is not beside it")
    else:
        names = sorted(file.name for file in folder.glob("*.safetensors") if file.name != _ADAPTER)
    if not 1 <= len(names) <= MOST_FILES:
        raise WeightsRefusedError(f"got {len(names)} safetensors files; expected 1 to {MOST_FILES}")
    return names


def _json(path: Path, most_bytes: int) -> dict[str, Any]:
    descriptor, state = _opened(path, path.name)
    try:
        if state[2] > most_bytes:
            raise WeightsRefusedError(f"{path.name}: got {state[2]} bytes; expected at most {most_bytes}")
        content = os.pread(descriptor, most_bytes, 0)
    finally:
        os.close(descriptor)
    return _object(content.decode("utf-8", "replace"), path.name, most_bytes)


def _object(text: str, called: str, most_bytes: int) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(text) if len(text) <= most_bytes else None
    except (ValueError, RecursionError) as error:
        raise WeightsRefusedError(f"{called}: got no JSON ({type(error).__name__}); expected an object") from error
    if not isinstance(found, dict):
        raise WeightsRefusedError(f"{called}: got no object of at most {most_bytes} characters; expected one")
    return found


def _opened(path: Path, called: str) -> tuple[int, State]:
    """A descriptor of a regular file, which the caller closes, and its state."""
    try:
        # A pipe of that name would be waited for, and a link put there after resolving would be followed.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise WeightsRefusedError(f"{called} cannot be opened ({type(error).__name__})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise WeightsRefusedError(f"{called} is no regular file")
    return descriptor, state_of(descriptor)
