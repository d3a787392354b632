"""`trainer.v1.sampler.sampler_kwargs` of verl: which key goes to which choice, and what is refused.

The names are those of `CreditConfig`, `CandidateReward`, `SpanReward` and `SensitivityConfig`, which say what each
means.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from creditd.adapters.candidate_reward import CandidateReward
from creditd.adapters.credit_config import CreditConfig, anneal
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.adapters.span_reward import SpanReward

Kind: TypeAlias = Literal["candidates", "spans", "span_rewards", "sensitivity"]
Incomplete: TypeAlias = Literal["raise", "mask"]

_FUNCTION = "pkg://"
_NEVER = ("credit_in_eval",)
_OF_CANDIDATES = ("credit", "utility", "advantage", "tokens", "candidates", "malformed")
_OF_OWN_MODEL = ("in_process", "most_tokens")
_OF_CHECKPOINTS = ("initial_weights", "max_weights_age", "push_deadline_s", "run")
_OF_WEIGHTS = ("weight_version", "weights", "initial_weights", "max_weights_age")


@dataclass(frozen=True)
class CommonSettings:
    """What all kinds take.

    Attributes:
        kind: `candidates`: credit of candidates inside a completion; `spans`: SCAR in the form of GRPO;
            `span_rewards`: SCAR as token rewards, for PPO; `sensitivity`: OAR.
        group_size: Sessions of a prompt; None takes `actor_rollout_ref.rollout.n`.
        longest: Response tokens at which generation is cut off; None takes `actor_rollout_ref.rollout.response_length`.
        tokenizer: Name or folder of the policy's tokenizer; None takes the trainer's.
        silent: Tokens beside the tokenizer's end and padding that end or fill up a response, which are no text.
        columns: Fields of the data that the candidate reward function gets by name.
        reward_weight: Of verl's own reward as another reward of the whole response; 0: it is not read.
        incomplete_groups: What happens to a prompt of which sessions failed: `raise`, or advantage 0 for those that are
            left (`mask`), which is counted.
    """

    kind: Kind = "candidates"
    group_size: int | None = None
    longest: int | None = None
    tokenizer: str | None = None
    silent: tuple[int, ...] = ()
    columns: tuple[str, ...] = ("data_source", "reward_model")
    reward_weight: float = 0.0
    incomplete_groups: Incomplete = "raise"

    def __post_init__(self) -> None:
        for name, known in (("kind", Kind), ("incomplete_groups", Incomplete)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"got {name} {getattr(self, name)!r}; expected one of {', '.join(get_args(known))}")
        for name in ("group_size", "longest"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"got {name} {value!r}; expected a whole number of at least 1")
        weight: object = self.reward_weight
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"got reward_weight {weight!r}; expected a number")  # noqa: TRY004 - as all


@dataclass(frozen=True)
class VerlSettings:
    """All keys, sorted by who takes them.

    Attributes:
        common: What all kinds take.
        config: Arguments of `CreditConfig`, or of `SensitivityConfig`.
        reward: Arguments of `CandidateReward` or `SpanReward`, the function or model first, as `function`; of
            `sensitivity` what is beside its configuration.
    """

    common: CommonSettings
    config: Mapping[str, Any] = field(repr=False)  # a key may be in it
    reward: Mapping[str, Any]


def known_keys(kind: Kind) -> tuple[list[str], list[str], list[str]]:
    """Keys of a kind: those of all kinds, those of the configuration, and those of the reward."""
    common = [field.name for field in fields(CommonSettings)]
    of_credit = [field.name for field in fields(CreditConfig) if field.name not in _NEVER]
    of_both = [name for name in of_credit if name not in _OF_CANDIDATES]
    if kind == "candidates":
        return common, of_credit, ["reward", *_arguments(CandidateReward)]
    if kind == "spans":
        return common, of_both, ["reward", *_arguments(SpanReward)]
    if kind == "span_rewards":
        taken = [name for name in _arguments(SpanReward) if name not in {"advantage", "name"}]
        return common, [name for name in of_both if name != "on_failure"], ["reward", *taken]
    own = [field.name for field in fields(SensitivityConfig) if field.name not in _OF_OWN_MODEL]
    return common, own, ["base_advantage", *_OF_WEIGHTS]


def settings_of(given: Mapping[str, Any]) -> VerlSettings:
    """What the keys say.

    Args:
        given: `sampler_kwargs` as plain values.

    Returns:
        Keys sorted by who takes them, with functions in the place of their names.

    Raises:
        ValueError: If a key is unknown for its kind, or what all kinds take is not what it should be.
        ImportError: If there is no such module.
    """
    names = {field.name for field in fields(CommonSettings)}
    columns = given.get("columns", CommonSettings.columns)
    if isinstance(columns, str) or not all(isinstance(name, str) for name in columns):
        raise ValueError(f"got columns {columns!r}; expected a list of names")
    silent = given.get("silent", CommonSettings.silent)
    if isinstance(silent, str) or not all(isinstance(token, int) for token in silent):
        raise ValueError(f"got silent {silent!r}; expected a list of tokens")
    chosen = {name: value for name, value in given.items() if name in names}
    common = CommonSettings(**chosen | {"columns": tuple(columns), "silent": tuple(silent)})
    _, of_config, of_reward = known_keys(common.kind)
    unknown = [name for name in given if name not in names and name not in {*of_config, *of_reward}]
    if unknown:
        every = ", ".join(sorted({*names, *of_config, *of_reward}))
        raise ValueError(f"sampler_kwargs: got {unknown[0]!r}; expected, with kind={common.kind}, some of {every}")
    lonely = [name for name in _OF_CHECKPOINTS if name in given] if given.get("weights") is None else []
    if lonely:
        raise ValueError(f"sampler_kwargs: got {lonely[0]!r} without weights; expected both, or neither")
    reward = {
        name: value if name == "reward" else _scheduled(value) for name, value in given.items() if name in of_reward
    }
    if "reward" in of_reward:
        if not isinstance(reward.get("reward"), str) or not reward["reward"]:
            raise ValueError(
                "sampler_kwargs: got no reward; expected pkg://MODULE:NAME or /FILE.py:NAME of a function, or the id "
                "of a "
                "reward model of the service"
            )
        reward["function"] = named(reward.pop("reward"))
    config = {name: _scheduled(value) for name, value in given.items() if name in of_config}
    return VerlSettings(common, config, reward)


def named(name: str) -> Callable[..., Any] | str:
    """The function `pkg://MODULE:NAME` or `/FILE.py:NAME`, or the name itself: the id of a model.

    Args:
        name: What the configuration says.

    Returns:
        What is called so.

    Raises:
        ValueError: If the module has no such function.
        ImportError: If there is no such module.
    """
    place, _, attribute = name.rpartition(":")
    if not name.startswith(_FUNCTION) and not place.endswith(".py"):
        return name
    if not place or not attribute or place == _FUNCTION[:-3]:
        raise ValueError(f"got {name!r}; expected pkg://MODULE:NAME or /FILE.py:NAME")
    module = importlib.import_module(place[len(_FUNCTION) :]) if place.startswith(_FUNCTION) else _of_file(place)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"got {name!r}, in which there is no function {attribute}; expected one")  # noqa: TRY004 - as all
    found: Callable[..., Any] = function
    return found


def _of_file(path: str) -> Any:  # noqa: ANN401 - a module of the user's
    """The module that a file holds, under a name that no package has."""
    place = Path(path).resolve()
    name = f"creditd_verl_{place.stem}"
    spec = importlib.util.spec_from_file_location(name, place)
    if not place.is_file() or spec is None or spec.loader is None:
        raise ImportError(f"got {path!r}; expected a file of Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _scheduled(value: Any) -> Any:  # noqa: ANN401 - whatever a configuration holds
    """A schedule in the place of its description or its name; everything else as it is."""
    if isinstance(value, str) and value.startswith(_FUNCTION):
        return named(value) if ":" in value[len(_FUNCTION) :] else value
    if isinstance(value, Mapping) and value.get("type") == "anneal":
        given = {name: entry for name, entry in value.items() if name != "type"}
        if given.keys() != {"start", "end", "steps"}:
            raise ValueError(f"got anneal with {', '.join(sorted(given)) or 'nothing'}; expected start, end and steps")
        return anneal(given["start"], given["end"], steps=given["steps"])
    return value


def _arguments(kind: type) -> list[str]:
    """Arguments of a reward, without the function."""
    return [name for name in inspect.signature(kind).parameters if name != "function"]
