"""Directories that `save_pretrained` wrote, looked at before anything in them is loaded: paths, formats, settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.model_spec import ModelSpec

J = TypeVar("J")

_WEIGHTS = "*.safetensors"
_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""What transformers loads on top of a model where peft is installed."""
_UNSAFE = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def checked_path(spec: ModelSpec, root: Path) -> Path:
    """The directory of a model, looked at before anything in it is opened.

    Args:
        spec: The model.
        root: Directory that all models are in.

    Returns:
        The resolved path.

    Raises:
        ModelUnsuitableError: If it is outside the root, no directory, has no configuration or no safetensors, or asks
            for code of its own.
    """
    if spec.path is None:
        raise ModelUnsuitableError(f"model {spec.id}: it is remote; expected a path")
    path, inside = (root / spec.path).resolve(), root.resolve()
    if not path.is_relative_to(inside):
        raise ModelUnsuitableError(f"model {spec.id}: its path is outside the directory for models")
    if not path.is_dir():
        raise ModelUnsuitableError(f"model {spec.id}: there is no directory {spec.path} among the models")
    for file in path.rglob("*"):
        if not file.resolve().is_relative_to(inside):
            raise ModelUnsuitableError(f"model {spec.id}: {file.name} leads outside the directory for models")
    if not (path / "config.json").is_file():
        raise ModelUnsuitableError(
            f"model {spec.id}: {spec.path} has no config.json; expected what save_pretrained wrote"
        )
    if not any(path.glob(_WEIGHTS)):
        unsafe = sorted(file.name for pattern in _UNSAFE for file in path.glob(pattern))
        found = f"got {unsafe[0]}, which can run code; " if unsafe else ""
        raise ModelUnsuitableError(
            f"model {spec.id}: {found}expected weights as safetensors (save_pretrained writes them)"
        )
    for index in path.glob("*.index.json"):
        _shards(spec, index)
    if "auto_map" in read_json(spec, path / "config.json", dict):
        raise ModelUnsuitableError(f"model {spec.id}: its config asks for code of its own (auto_map), which is not run")
    return path


def weight_files(spec: ModelSpec, path: Path) -> tuple[Path, ...]:
    """The files whose bytes decide what a model computes of tokens: configuration, weights, their index, adapters.

    Args:
        spec: The model.
        path: Its directory, from `checked_path`.

    Returns:
        Those that transformers loads: the file that `transformers_weights` in the configuration names, else
        `model.safetensors`, else what the index beside it names. Where none of these is there, all safetensors.

    Raises:
        ModelUnsuitableError: If the configuration names a file outside the directory, or an index names no files.
    """
    config = path / "config.json"
    named = read_json(spec, config, dict).get("transformers_weights")
    names = [named] if isinstance(named, str) else [_ONE_FILE, _INDEX]
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
        raise ModelUnsuitableError(
            f"model {spec.id}: transformers_weights in its config.json leads outside its directory"
        )
    first = next((path / name for name in names if (path / name).is_file()), None)
    if first is None:
        weights = [*path.glob(_WEIGHTS)]
    elif first.suffix == ".json":
        # transformers looks for them in the directory, wherever in it the index is.
        weights = [first, *(path / shard for shard in _shards(spec, first))]
    else:
        weights = [first]
    return (config, *weights, *(path / name for name in _ADAPTER if (path / name).is_file()))


def _shards(spec: ModelSpec, index: Path) -> list[str]:
    """The files that an index of weights names, which have to stand beside it."""
    shards = read_json(spec, index, dict).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelUnsuitableError(f"model {spec.id}: {index.name} names no files; expected what save_pretrained wrote")
    for shard in shards.values():
        if not isinstance(shard, str) or shard != Path(shard).name:
            raise ModelUnsuitableError(f"model {spec.id}: {index.name} names a file that is not beside it")
    return sorted(set(shards.values()))


def read_json(spec: ModelSpec, file: Path, expected: type[J]) -> J:
    """What a file of a model holds.

    Args:
        spec: The model.
        file: JSON.
        expected: Type of the whole.

    Returns:
        A value of that type.

    Raises:
        ModelUnsuitableError: If it cannot be read, or holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnsuitableError(f"model {spec.id}: {file.name} cannot be read: {error}") from error
    if not isinstance(found, expected):
        raise ModelUnsuitableError(
            f"model {spec.id}: {file.name} holds a {type(found).__name__}; expected a {expected.__name__}"
        )
    return found
