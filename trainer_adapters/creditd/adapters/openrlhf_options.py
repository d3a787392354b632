"""Options of the launcher for OpenRLHF: from a command line to what is asked for, and how.

Those of creditd begin with `--credit.`; all others are OpenRLHF's. What was chosen travels to the process that trains
as texts and numbers; functions are found there, by their names.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from creditd.adapters.candidate_reward import CandidateReward
from creditd.adapters.checkpoint_weights import CheckpointKeys, keys_of
from creditd.adapters.credit_config import Anneal, CreditConfig
from creditd.adapters.credit_reward import CreditReward
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.adapters.span_reward import SpanReward

KlInReward: TypeAlias = Literal["refuse", "keep"]
Kind: TypeAlias = Literal["candidates", "spans", "sensitivity"]

PREFIX = "--credit."
_OF_SPANS = ("segmentation", "absent", "alpha", "estimator", "batch_size")
_OF_EITHER = ("credit", "advantage")
"""What a `SpanReward` takes itself, and a `CandidateReward` leaves to the `CreditConfig`."""
_OF_WEIGHTS = ("weight_version", "weights", "initial_weights", "max_weights_age")
_OF_CHECKPOINTS = ("initial_weights", "max_weights_age", "push_deadline_s", "run")
"""What means nothing without `weights`."""
_EVERY: tuple[Kind, ...] = get_args(Kind)
KINDS: Mapping[str, tuple[Kind, ...]] = {
    **dict.fromkeys(("reward", "name", *_OF_EITHER, "kl_in_reward"), ("candidates", "spans")),
    "parser": ("candidates", "sensitivity"),
    **dict.fromkeys(("turns", "thinking", "utility", "tokens", "candidates", "malformed"), ("candidates",)),
    **dict.fromkeys(_OF_SPANS, ("spans",)),
    **dict.fromkeys(("model", "sensitivity", "probe", "reshape", "push_deadline_s", "run"), ("sensitivity",)),
    **dict.fromkeys(_OF_WEIGHTS, ("sensitivity",)),
    **dict.fromkeys(("url", "on_failure", "deterministic", "deadline_s", "max_credit_share", "record", "keep"), _EVERY),
}
"""Every option, and whose it is."""
_ASKED_BY: Mapping[Kind, str] = {
    "candidates": f"{PREFIX}reward and {PREFIX}parser ask for",
    "spans": f"{PREFIX}reward without {PREFIX}parser asks for",
    "sensitivity": f"{PREFIX}model asks for",
}


@dataclass(frozen=True)
class CreditChoices:
    """What was chosen on a command line; made of texts, numbers and mappings alone, so that it can travel.

    Attributes:
        reward: `package.module:function`, `/path/to/file.py:function`, or the id of a reward model of the service.
        of_reward: Arguments of `CandidateReward` or `SpanReward`.
        of_config: Arguments of `CreditConfig`, the key of the service among them: no text shows them.
        kl_in_reward: Whether a KL penalty that is part of the rewards is refused, or its returns are added to the
            advantages as OpenRLHF itself has them.
    """

    reward: str
    of_reward: Mapping[str, Any]
    of_config: Mapping[str, Any] = field(repr=False)
    kl_in_reward: KlInReward = "refuse"

    @property
    def of_spans(self) -> bool:
        """Whether spans have credit, and not candidates: these have a parser."""
        return "parser" not in self.of_reward

    def made(self) -> tuple[CreditReward, CreditConfig]:
        """The reward, new, and how to ask.

        Raises:
            ValueError: If the choices contradict each other, or a function is not there.
            TypeError: If what has the name of a function is none.
        """
        of_reward, of_config = ({name: found(value) for name, value in given.items()} for given in self._given)
        kind = SpanReward if self.of_spans else CandidateReward
        reward = function_of(self.reward) if is_reference(self.reward) else self.reward
        return kind(reward, **of_reward), CreditConfig(**of_config)

    @property
    def _given(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return self.of_reward, self.of_config


@dataclass(frozen=True)
class SensitivityChoices:
    """What was chosen on a command line with a policy in the place of a reward; it can travel likewise.

    Attributes:
        of_config: Arguments of `SensitivityConfig`, the key of the service among them: no text shows them.
        of_weights: `weight_version`, or `weights`, `initial_weights` and `max_weights_age`, where they were given.
    """

    of_config: Mapping[str, Any] = field(repr=False)
    of_weights: Mapping[str, Any] = field(default_factory=dict)

    def made(self) -> SensitivityConfig:
        """How the policy is asked.

        Raises:
            ValueError: If the choices contradict each other.
        """
        if "parser" not in self.of_config:
            raise ValueError(
                f"got {PREFIX}model without {PREFIX}parser; expected where reasoning and answer are, such as hashes"
            )
        if self.of_config.get("url") == "local:":
            raise ValueError("got the url local:, where there is no policy; expected the address of a service")
        config = SensitivityConfig(**self.of_config)
        if self.checkpoints is None:
            lonely = next((name for name in _OF_CHECKPOINTS if name in {**self.of_config, **self.of_weights}), None)
            if lonely is not None:
                raise ValueError(f"got {PREFIX}{lonely} without {PREFIX}weights; expected both, or neither")
        return config

    @property
    def checkpoints(self) -> CheckpointKeys | None:
        """Where OpenRLHF's checkpoints are, as the service sees them; None if it is given none.

        Raises:
            ValueError: If the choices contradict each other.
        """
        return keys_of(self.of_weights)


Choices: TypeAlias = CreditChoices | SensitivityChoices


def is_reference(name: str) -> bool:
    """Whether a text names a function: `package.module:function`, or `file.py:function`."""
    place, colon, function = name.rpartition(":")
    return bool(colon and place) and function.isidentifier()


def function_of(reference: str) -> Callable[..., Any]:
    """The function of a name.

    Args:
        reference: `package.module:function`, or `/path/to/file.py:function`.

    Returns:
        What stands there.

    Raises:
        ValueError: If there is no such file or module, or nothing of this name in it. What the module itself raises
            when it is executed is raised as it is.
    """
    place, _, name = reference.rpartition(":")
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise ValueError(f"got the function {reference!r}; expected a file at {path.absolute()}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ValueError(f"got the function {reference!r}; expected a file of Python at {path.absolute()}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not (place == error.name or place.startswith(f"{error.name}.")):
                raise  # a module that it imports is not there
            raise ValueError(
                f"got the function {reference!r}, and no module {error.name}; expected one that can be imported in "
                "the process that trains, or /path/to/file.py:function"
            ) from None
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"got the function {reference!r}, where there is no function {name}; expected its name")  # noqa: TRY004 - as all
    chosen: Callable[..., Any] = function
    return chosen


def found(value: object) -> Any:  # noqa: ANN401 - whatever an argument is
    """What a choice stands for: a function for its name, a schedule for an `anneal`; else the value itself."""
    if isinstance(value, str) and is_reference(value) and "://" not in value:
        return function_of(value)
    if isinstance(value, Mapping) and value.get("type") == "anneal":
        if value.keys() != {"type", "start", "end", "steps"}:
            raise ValueError(f"got {dict(value)!r}; expected an anneal with start, end and steps")
        return Anneal(value["start"], value["end"], value["steps"])
    return value


def split_arguments(arguments: Sequence[str]) -> tuple[Choices, list[str]]:
    """What is creditd's on a command line, and what is OpenRLHF's.

    Args:
        arguments: As they were given, without the program.

    Returns:
        The choices of creditd, and the other arguments in their order.

    Raises:
        SystemExit: As every command line, with the reason on stderr: an option that begins with `--credit.` and is
            none, one that belongs to another kind, or a value that is none.
    """
    parser = _parser()
    given, others = parser.parse_known_args(list(arguments))
    unknown = next((one for one in others if one.partition("=")[0].startswith(("--credit.", "--credit_"))), None)
    if unknown is not None:
        parser.error(f"unknown option {unknown.partition('=')[0]}; expected one of {', '.join(names())}")
    chosen = {name.removeprefix("credit."): value for name, value in vars(given).items() if value is not None}
    return _choices(parser, chosen), others


def _choices(parser: argparse.ArgumentParser, chosen: dict[str, Any]) -> Choices:
    """Options sorted by whose argument each is."""
    if ("reward" in chosen) == ("model" in chosen):
        given = f"both {PREFIX}reward and" if "reward" in chosen else f"neither {PREFIX}reward nor"
        parser.error(f"got {given} {PREFIX}model; expected one of them")
    kind: Kind = "sensitivity" if "model" in chosen else "candidates" if "parser" in chosen else "spans"
    wrong = next((name for name in KINDS if name in chosen and kind not in KINDS[name]), None)
    if wrong is not None:
        parser.error(
            f"got {PREFIX}{wrong}, which is for {' and '.join(KINDS[wrong])}; expected options of {kind}, which "
            f"{_ASKED_BY[kind]}"
        )
    chosen.setdefault("url", os.environ.get("CREDITD_URL"))
    chosen["api_key"] = os.environ.get("CREDITD_API_KEY")
    try:
        choices = _of_policy(chosen) if kind == "sensitivity" else _of_reward(kind, chosen)
        choices.made()
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        parser.error(str(error))
    return choices


def _of_policy(chosen: Mapping[str, Any]) -> SensitivityChoices:
    """Choices with a policy."""
    return SensitivityChoices(
        of_config={name: value for name, value in chosen.items() if name not in _OF_WEIGHTS},
        of_weights={name: value for name, value in chosen.items() if name in _OF_WEIGHTS},
    )


def _of_reward(kind: Kind, chosen: dict[str, Any]) -> CreditChoices:
    """Choices with a reward."""
    reward, kl_in_reward = chosen.pop("reward"), chosen.pop("kl_in_reward", "refuse")
    if kind == "candidates" and isinstance(chosen["parser"], str):
        chosen["parser"] = _mapping(chosen["parser"])  # which says what is wrong with it
    of_reward = ("name", *_OF_SPANS, *_OF_EITHER) if kind == "spans" else ("name", "parser", "turns", "thinking")
    return CreditChoices(
        reward=_absolute(reward),
        of_reward={name: value for name, value in chosen.items() if name in of_reward},
        of_config={name: value for name, value in chosen.items() if name not in of_reward},
        kl_in_reward=kl_in_reward,
    )


def _absolute(reward: str) -> str:
    """The name of a function in a file, wherever it is looked up."""
    place, colon, name = reward.rpartition(":")
    return f"{Path(place).absolute()}{colon}{name}" if is_reference(reward) and place.endswith(".py") else reward


def names() -> list[str]:
    """Every option of creditd."""
    return [PREFIX + name for name in KINDS]


def _parser() -> argparse.ArgumentParser:
    """Options by the names of the arguments of CreditConfig, CandidateReward, SpanReward and SensitivityConfig."""
    parser = argparse.ArgumentParser(
        prog="python -m creditd.adapters.openrlhf",
        usage="%(prog)s --credit.reward REWARD | --credit.model ID [--credit.… …] [options of "
        "openrlhf.cli.train_ppo_ray]",
        description="OpenRLHF's PPO trainer with the credit of creditd. Options that do not begin with --credit. are "
        "those of openrlhf.cli.train_ppo_ray. The key of the service is CREDITD_API_KEY.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--credit.help", action="help", help="show this and exit")
    parser.add_argument(
        "--credit.reward",
        help="package.module:function, /path/to/file.py:function, or the id of a reward model of the service",
    )
    parser.add_argument(
        "--credit.model",
        help="in the place of a reward the id of a policy of the service: OpenRLHF's own advantages are reshaped (OAR)",
    )
    parser.add_argument(
        "--credit.kl_in_reward",
        choices=get_args(KlInReward),
        help="a KL penalty in rewards (without --algo.kl.use_loss): refused, or its returns added to the advantages",
    )
    for name in ("url", "on_failure", "record", "turns", "thinking", "name", "run"):
        parser.add_argument(PREFIX + name)
    for name in _OF_WEIGHTS[:3]:
        parser.add_argument(PREFIX + name, help="may have {step} in it")
    for name in ("credit", "advantage", "utility", "segmentation", "absent", "parser", "sensitivity", "probe"):
        parser.add_argument(PREFIX + name, type=_choice, help="a name, or a mapping as JSON")
    for name in ("tokens", "malformed", "estimator", "reshape"):
        parser.add_argument(PREFIX + name, type=_mapping, help="a mapping as JSON")
    for name in ("candidates", "keep", "batch_size", "max_weights_age"):
        parser.add_argument(PREFIX + name, type=int)
    for name in ("deadline_s", "push_deadline_s", "max_credit_share"):
        parser.add_argument(PREFIX + name, type=float)
    parser.add_argument("--credit.alpha", type=_number_or_function)
    parser.add_argument("--credit.deterministic", action="store_true", default=None)
    return parser


def _mapping(text: str) -> dict[str, Any]:
    """A mapping that is written as JSON."""
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, which is no JSON ({error}); expected a mapping") from None
    if not isinstance(given, dict):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a mapping as JSON")
    return given


def _choice(text: str) -> str | dict[str, Any]:
    """A name, or a mapping that is written as JSON."""
    return _mapping(text) if text.lstrip().startswith("{") else text


def _number_or_function(text: str) -> float | str:
    """A number, or the name of a function of the step."""
    if is_reference(text):
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a number, or package.module:function") from None
