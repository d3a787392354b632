"""Options of the launcher for OpenRLHF: from a command line to a reward, and how to ask for its credit.

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
from creditd.adapters.credit_config import Anneal, CreditConfig
from creditd.adapters.credit_reward import CreditReward
from creditd.adapters.span_reward import SpanReward

KlInReward: TypeAlias = Literal["refuse", "keep"]

PREFIX = "--credit."
_OF_CANDIDATES = ("turns", "thinking")
_OF_SPANS = ("segmentation", "absent", "alpha", "estimator", "batch_size")
_OF_CONFIG_OF_CANDIDATES = ("utility", "tokens", "candidates", "malformed")
_OF_EITHER = ("credit", "advantage")
"""What a `SpanReward` takes itself, and a `CandidateReward` leaves to the `CreditConfig`."""
_OF_CONFIG = ("url", "on_failure", "deterministic", "deadline_s", "max_credit_share", "record", "keep")


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


def split_arguments(arguments: Sequence[str]) -> tuple[CreditChoices, list[str]]:
    """What is creditd's on a command line, and what is OpenRLHF's.

    Args:
        arguments: As they were given, without the program.

    Returns:
        The choices of creditd, and the other arguments in their order.

    Raises:
        SystemExit: As every command line, with the reason on stderr: an option that begins with `--credit.` and is
            none, one that belongs to the other kind of reward, or a value that is none.
    """
    parser = _parser()
    given, others = parser.parse_known_args(list(arguments))
    unknown = next((one for one in others if one.partition("=")[0].startswith(("--credit.", "--credit_"))), None)
    if unknown is not None:
        parser.error(f"unknown option {unknown.partition('=')[0]}; expected one of {', '.join(names())}")
    chosen = {name.removeprefix("credit."): value for name, value in vars(given).items() if value is not None}
    return _choices(parser, chosen), others


def _choices(parser: argparse.ArgumentParser, chosen: dict[str, Any]) -> CreditChoices:
    """Options sorted by whose argument each is."""
    reward, kl_in_reward = chosen.pop("reward"), chosen.pop("kl_in_reward")
    spans = "parser" not in chosen
    strangers = (*_OF_CANDIDATES, *_OF_CONFIG_OF_CANDIDATES) if spans else _OF_SPANS
    wrong = next((name for name in strangers if name in chosen), None)
    if wrong is not None:
        why = (
            "which is for candidates, without --credit.parser" if spans else "which is for spans, with --credit.parser"
        )
        parser.error(f"got {PREFIX}{wrong}, {why}; expected a parser for candidates alone")
    of_reward = ("name", *_OF_SPANS, *_OF_EITHER) if spans else ("name", "parser", *_OF_CANDIDATES)
    config = {name: value for name, value in chosen.items() if name not in of_reward}
    config.setdefault("url", os.environ.get("CREDITD_URL"))
    config["api_key"] = os.environ.get("CREDITD_API_KEY")
    choices = CreditChoices(
        reward=_absolute(reward),
        of_reward={name: value for name, value in chosen.items() if name in of_reward},
        of_config=config,
        kl_in_reward=kl_in_reward,
    )
    try:
        choices.made()
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    return choices


def _absolute(reward: str) -> str:
    """The name of a function in a file, wherever it is looked up."""
    place, colon, name = reward.rpartition(":")
    return f"{Path(place).absolute()}{colon}{name}" if is_reference(reward) and place.endswith(".py") else reward


def names() -> list[str]:
    """Every option of creditd."""
    """Every option of creditd."""
    every = ("reward", "parser", "name", *_OF_CANDIDATES, *_OF_SPANS, *_OF_EITHER, *_OF_CONFIG_OF_CANDIDATES)
    return [PREFIX + name for name in (*every, *_OF_CONFIG, "kl_in_reward")]


def _parser() -> argparse.ArgumentParser:
    """Options by the names of the arguments of CreditConfig, CandidateReward and SpanReward."""
    parser = argparse.ArgumentParser(
        prog="python -m creditd.adapters.openrlhf",
        usage="%(prog)s --credit.reward REWARD [--credit.… …] [options of openrlhf.cli.train_ppo_ray]",
        description="OpenRLHF's PPO trainer with the credit of creditd. Options that do not begin with --credit. are "
        "those of openrlhf.cli.train_ppo_ray. The key of the service is CREDITD_API_KEY.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--credit.help", action="help", help="show this and exit")
    parser.add_argument(
        "--credit.reward",
        required=True,
        help="package.module:function, /path/to/file.py:function, or the id of a reward model of the service",
    )
    parser.add_argument(
        "--credit.kl_in_reward",
        choices=get_args(KlInReward),
        default="refuse",
        help="a KL penalty in rewards (without --algo.kl.use_loss): refused, or its returns added to the advantages",
    )
    for name in (*_OF_CONFIG[:2], "record", "turns", "thinking", "name"):
        parser.add_argument(PREFIX + name)
    for name in ("credit", "advantage", "utility", "segmentation", "absent"):
        parser.add_argument(PREFIX + name, type=_choice, help="a name, or a mapping as JSON")
    for name in ("parser", "tokens", "malformed", "estimator"):
        parser.add_argument(PREFIX + name, type=_mapping, help="a mapping as JSON")
    for name in ("candidates", "keep", "batch_size"):
        parser.add_argument(PREFIX + name, type=int)
    parser.add_argument("--credit.deadline_s", type=float)
    parser.add_argument("--credit.max_credit_share", type=float)
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
