"""What the files of sentence-transformers beside a model say of how a text becomes one vector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from creditd.engines.directories import read_json
from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.model_spec import ModelSpec, Pooling

_OWNER = "sentence_transformers."
_KINDS = ("Transformer", "Pooling", "Normalize")
_MODES: dict[str, Pooling] = {
    "mean": "mean",
    # They differ by a factor, which a vector of length 1 does not have.
    "mean_sqrt_len_tokens": "mean",
    "cls": "first",
    "lasttoken": "last",
}
_OLDER = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Flags of a mode each, as they were written before there was one field for the mode."""


@dataclass(frozen=True)
class SentenceFiles:
    """What a directory says beside its model.

    Attributes:
        pooling: How one vector is made of the states of tokens; None where nothing is said.
        max_tokens: Longest sequence; None where nothing is said.
        lowers: Whether texts are read in lower case.
        files: The files that say so.
    """

    pooling: Pooling | None = None
    max_tokens: int | None = None
    lowers: bool = False
    files: tuple[Path, ...] = ()


def read_sentence_files(spec: ModelSpec, path: Path, root: Path) -> SentenceFiles:
    """Read `modules.json`, the configuration of the pooling, and that of the tokens.

    Args:
        spec: The model.
        path: Its directory, from `checked_path`.
        root: Directory that all models are in.

    Returns:
        What they say; nothing where there are none. Vectors have length 1 whether or not the modules end in one that
        sees to it.

    Raises:
        ModelUnsuitableError: If there are modules beside a transformer, a pooling and a normalisation, a pooling that
            makes no vector by the mean, the first or the last token, or files outside the root.
    """
    pooling, files = None, list[Path]()
    if (path / "modules.json").is_file():
        files.append(path / "modules.json")
        modules = read_json(spec, path / "modules.json", list)
        poolings = [module for module in modules if _kind(spec, module) == "Pooling"]
        if len(poolings) > 1:
            raise ModelUnsuitableError(f"model {spec.id}: modules.json has {len(poolings)} poolings; expected one")
        if poolings:
            files.append(_inside(spec, path, root, str(poolings[0].get("path"))))
            pooling = _pooling(spec, files[-1])
    of_tokens = next(iter(sorted(path.glob("sentence_*_config.json"))), None)
    settings: dict[str, Any] = {}
    if of_tokens is not None:
        files.append(of_tokens)
        settings = read_json(spec, of_tokens, dict)
    longest = settings.get("max_seq_length")
    if longest is not None and (not isinstance(longest, int) or longest < 1):
        raise ModelUnsuitableError(f"model {spec.id}: max_seq_length is {longest}; expected a number of tokens")
    return SentenceFiles(pooling, longest, bool(settings.get("do_lower_case")), tuple(files))


def chosen_pooling(spec: ModelSpec, found: SentenceFiles) -> Pooling:
    """The pooling that the directory names, or else the registration.

    Args:
        spec: The model.
        found: What its directory says.

    Returns:
        The one that at least one of them names.

    Raises:
        ModelUnsuitableError: If neither names one, or they differ.
    """
    pooling = found.pooling or spec.pooling
    if pooling is None:
        raise ModelUnsuitableError(
            f"model {spec.id}: its directory does not say how one vector is made of the states of tokens; expected the "
            "setting pooling: mean, first or last"
        )
    if spec.pooling not in {None, pooling}:
        raise ModelUnsuitableError(
            f"model {spec.id}: it is registered with pooling {spec.pooling}, and its directory was made for {pooling}; "
            "expected the same, or none in the registration"
        )
    return pooling


def _kind(spec: ModelSpec, module: object) -> str:
    """The kind of a module, if it is one that is known."""
    kind = str(module.get("type")) if isinstance(module, dict) else repr(module)
    name = kind.rpartition(".")[2]
    if name not in _KINDS or not kind.startswith(_OWNER):
        raise ModelUnsuitableError(
            f"model {spec.id}: modules.json has a module {name}, which is not computed here; expected a Transformer, a "
            "Pooling and a Normalize of sentence-transformers"
        )
    if name == "Transformer" and isinstance(module, dict) and module.get("path") not in {"", "."}:
        raise ModelUnsuitableError(
            f"model {spec.id}: modules.json has its Transformer in {module.get('path')}; expected it in the same folder"
        )
    return name


def _inside(spec: ModelSpec, path: Path, root: Path, folder: str) -> Path:
    file = path / folder / "config.json"
    if not file.resolve().is_relative_to(root.resolve()):
        raise ModelUnsuitableError(f"model {spec.id}: modules.json leads outside the directory for models")
    return file


def _pooling(spec: ModelSpec, file: Path) -> Pooling:
    settings = read_json(spec, file, dict)
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _OLDER.items() if settings.get(flag)] or ["mean"]
    named = [str(mode) for mode in ([modes] if isinstance(modes, str) else modes)]
    if len(named) != 1 or named[0] not in _MODES:
        raise ModelUnsuitableError(
            f"model {spec.id}: its pooling is {' with '.join(named)}; expected one of mean, cls and lasttoken"
        )
    return _MODES[named[0]]
