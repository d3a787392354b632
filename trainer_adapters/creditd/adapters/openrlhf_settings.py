"""Where the adapter stands on OpenRLHF, and settings under which credit would be lost: both are looked at before a run.

A newer OpenRLHF in which something has moved is refused by the name of what moved; nothing is found out in the middle
of a training.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import warnings
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from creditd.adapters import openrlhf_no_reward
from creditd.adapters.compatibility import OPENRLHF, SeamMovedError, demand_seams
from creditd.adapters.openrlhf_options import Choices, CreditChoices, SensitivityChoices
from creditd.adapters.openrlhf_weights import check_checkpoints
from creditd.client.bodies import type_of

CLI = "openrlhf.cli.train_ppo_ray"
TRAINERS = {"openrlhf.trainer.ppo_trainer": "PPOTrainer", "openrlhf.trainer.ppo_trainer_async": "PPOTrainerAsync"}
"""The actors that the command line of OpenRLHF starts, one or the other."""
STRATEGY = ("openrlhf.utils", "get_strategy")
"""What it calls with its arguments before it starts anything."""
NO_REWARD = str(Path(openrlhf_no_reward.__file__).absolute())
_EXPERIENCE = "openrlhf.trainer.ppo_utils.experience"
_FIELDS = {
    *("sequences", "attention_mask", "action_mask", "advantages", "returns", "kl", "rewards", "scores", "index"),
    *("prompts", "labels", "info"),
}
_SCALED_AS = {"group_norm": None, "dr_grpo": ("centered", "none")}
"""Advantages of creditd that mean what an estimator says; `group_norm` leaves the choice open."""
_ANOTHER = {
    "rloo": "its baseline is the mean of the other responses",
    "reinforce": "it whitens over the whole batch, without groups",
    "reinforce_baseline": "it whitens over the whole batch behind the baseline of the group",
    "flash_reinforce": "its baseline is the mean of the whole batch, without groups",
}
_NOT_GIVEN = ("self", "_ray_trace_ctx")
"""Parameters that no caller names; Ray adds the second one to those of an actor's methods."""
_CLIP_RANGE = (-10.0, 10.0)
"""OpenRLHF's default."""


def check_seams() -> None:
    """Refuse an OpenRLHF in which something that the adapter stands on is not where it was; warn of untested ones.

    Raises:
        SeamMovedError: With the name of what has moved.
    """
    installed = OPENRLHF.installed or "of no release"
    if not OPENRLHF.is_tested(installed):
        warnings.warn(
            f"creditd's adapter is tested with OpenRLHF {OPENRLHF.tested}; this is {installed}",
            RuntimeWarning,
            stacklevel=2,
        )
    demand_seams(OPENRLHF)
    for seam in OPENRLHF.seams:
        got = tuple(inspect.signature(_thing(seam.module, seam.name)).parameters) if seam.parameters else ()
        if tuple(name for name in got if name not in _NOT_GIVEN) != seam.parameters:
            raise moved(f"{seam.module}.{seam.name}({', '.join(got)})", f"parameters {', '.join(seam.parameters)}")
    missing = _FIELDS - {one.name for one in fields(_thing(_EXPERIENCE, "Experience"))}
    if missing:
        raise moved(f"{_EXPERIENCE}.Experience without {', '.join(sorted(missing))}", "these fields")
    for module, name in (*TRAINERS.items(), ("openrlhf.trainer.ppo_trainer_async", "TrainingActor")):
        actor_of(module, name)
    _check_command_line()


def actor_of(module: str, name: str) -> type:
    """The class behind an actor of Ray.

    Args:
        module: Where it stands.
        name: Of the actor.

    Returns:
        The class that `ray.remote` was given.

    Raises:
        SeamMovedError: If it is no actor there.
    """
    inner = getattr(getattr(_thing(module, name), "__ray_metadata__", None), "modified_class", None)
    if not isinstance(inner, type):
        raise moved(f"{module}.{name}, which is no actor of Ray", "a class under @ray.remote")
    return inner


def _thing(module: str, name: str) -> Any:  # noqa: ANN401 - a class or a function
    """What stands under a name, dots included."""
    try:
        thing: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        raise moved(f"no module {error.name}", module) from None
    for part in name.split("."):
        if not hasattr(thing, part):
            raise moved(f"no {name} in {module}", "it there")
        thing = getattr(thing, part)
    return thing


def _check_command_line() -> None:
    """The command line imports what is replaced out of the modules in which it is."""
    spec = find_spec(CLI)
    if spec is None or spec.origin is None:
        raise moved(f"no module {CLI}", "it")
    imported = {
        (node.module, alias.name)
        for node in ast.walk(ast.parse(Path(spec.origin).read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for module, name in (*TRAINERS.items(), STRATEGY):
        if (module, name) not in imported:
            raise moved(f"{CLI}, which does not import {name} from {module}", "that import")


def moved(got: str, expected: str) -> SeamMovedError:
    """What is said of a part of OpenRLHF that is not where it was."""
    return SeamMovedError(
        f"OpenRLHF {OPENRLHF.installed} is not what creditd's adapter stands on: got {got}; expected {expected}, as in "
        f"a release that creditd is tested with: {OPENRLHF.tested}"
    )


def check_settings(args: Any, choices: Choices) -> None:  # noqa: ANN401 - OpenRLHF's own namespace
    """Refuse settings under which credit would be lost, or would not mean what it says.

    Args:
        args: OpenRLHF's arguments, as its command line leaves them.
        choices: Those of creditd.

    Raises:
        ValueError: With the reason.
    """
    if args.actor.policy_loss_type != "ppo":
        raise ValueError(
            f"got --actor.policy_loss_type {args.actor.policy_loss_type}, whose ratio is that of the whole response: "
            "each token would be trained on the mean advantage of its response, so the credit of tokens is lost; "
            "expected ppo"
        )
    if isinstance(choices, SensitivityChoices):
        _check_sensitivity(args, choices)
        return
    if args.reward.stop_properly_penalty_coef is not None:
        raise ValueError(
            "got --reward.stop_properly_penalty_coef, which changes rewards of OpenRLHF's own, and none of creditd's; "
            "expected none: give the penalty in the reward function"
        )
    clip = args.reward.clip_range
    if clip and tuple(map(float, clip)) != _CLIP_RANGE:
        raise ValueError(
            "got --reward.clip_range, which would clip rewards of OpenRLHF's own, and none of creditd's; expected the "
            "default: clip in the reward function"
        )
    if getattr(args.data, "max_images_per_prompt", 0) and (choices.of_spans or ":" not in choices.reward):
        raise ValueError(
            "got --data.max_images_per_prompt with a reward that reads text alone; expected a function for candidates"
        )
    if not has_rewards(args):
        for name, given in (
            ("--eval.dataset", args.eval.dataset),
            ("--algo.dynamic_filtering_enable", args.algo.dynamic_filtering_enable),
        ):
            if given:
                raise ValueError(
                    f"got {name}, for which OpenRLHF has no reward of its own; expected --reward.remote_url beside it"
                )
    if args.algo.advantage.estimator == "gae":
        _check_gae(choices)
    else:
        _check_groups(args, choices)


def _check_sensitivity(args: Any, choices: SensitivityChoices) -> None:  # noqa: ANN401 - as above
    """OpenRLHF's own advantages, of its own rewards, times the weights of tokens."""
    if not has_rewards(args):
        raise ValueError(
            "got --credit.model and no source of rewards, which OpenRLHF's advantages are made of; expected "
            "--reward.remote_url, --reward.model_name_or_path or --train.agent_func_path"
        )
    estimator = args.algo.advantage.estimator
    if estimator == "gae":
        raise ValueError(
            "got --algo.advantage.estimator gae with --credit.model: advantages of a critic judge each token already; "
            f"expected one of {', '.join((*_SCALED_AS, *_ANOTHER))}"
        )
    if estimator not in (*_SCALED_AS, *_ANOTHER):
        raise ValueError(
            f"got --algo.advantage.estimator {estimator}, which creditd does not know; expected one of "
            f"{', '.join((*_SCALED_AS, *_ANOTHER))}"
        )
    if getattr(args.data, "max_images_per_prompt", 0):
        raise ValueError(
            "got --data.max_images_per_prompt with --credit.model, a policy that reads tokens alone; expected none"
        )
    keys = choices.checkpoints
    if keys is not None:
        check_checkpoints(args, keys)


def has_rewards(args: Any) -> bool:  # noqa: ANN401 - as above
    """Whether OpenRLHF has a source of rewards beside creditd's."""
    urls = args.reward.remote_url
    given = [urls] if isinstance(urls, str) else urls or []
    return [Path(url).name for url in given] != [Path(NO_REWARD).name]  # elsewhere it may stand in another directory


def _check_gae(choices: CreditChoices) -> None:
    """PPO: a critic, and a reward for each token."""
    if not choices.of_spans:
        raise ValueError(
            "got --algo.advantage.estimator gae with credit of candidates, which is an advantage already; expected "
            "group_norm or dr_grpo, or a reward of spans, whose tokens have rewards"
        )
    if "credit" not in choices.of_reward:
        raise ValueError(
            "got --algo.advantage.estimator gae without --credit.credit: what a unit is worth to a learner that judges "
            "tokens by their returns-to-go has to be chosen; expected prefix (SCAR.md, PPO), or another one"
        )
    if "advantage" in choices.of_reward:
        raise ValueError("got --credit.advantage with gae, which makes advantages itself; expected none")
    policy = choices.of_config.get("on_failure", "raise")
    if policy != "raise":
        raise ValueError(
            f"got --credit.on_failure {policy} with --algo.advantage.estimator gae: without an answer nobody knows the "
            "rewards that the critic learns; expected raise"
        )


def _check_groups(args: Any, choices: CreditChoices) -> None:  # noqa: ANN401 - as above
    """Advantages within the group of a prompt, which take the place of the estimator's."""
    estimator = args.algo.advantage.estimator
    if estimator not in _SCALED_AS:
        why = _ANOTHER.get(estimator, "creditd does not know it")
        raise ValueError(
            f"got --algo.advantage.estimator {estimator}: {why}, which advantages of creditd are not; expected "
            "group_norm, dr_grpo, or for spans gae"
        )
    scales = _SCALED_AS[estimator]
    given = type_of((choices.of_reward if choices.of_spans else choices.of_config).get("advantage", "pooled"))
    if scales is not None and given not in scales:
        raise ValueError(
            f"got --algo.advantage.estimator {estimator} with credit that is {given}; expected --credit.advantage "
            f"{' or '.join(scales)}, or group_norm"
        )
    if scales is not None and has_rewards(args):
        raise ValueError(
            f"got --algo.advantage.estimator {estimator} with a source of rewards beside creditd's, whose advantage is "
            "standardised over each group; expected group_norm, or no such source"
        )
    if args.rollout.n_samples_per_prompt < 2:
        raise ValueError("got --rollout.n_samples_per_prompt 1; expected at least 2 responses to compare")
    if args.reward.overlong_buffer_len is not None:
        raise ValueError(
            "got --reward.overlong_buffer_len, which changes rewards behind the credit of tokens, so it would be lost; "
            "expected none: give the penalty in the reward function, or under --reward.remote_url"
        )
    if not args.algo.kl.use_loss and args.algo.kl.init_coef > 0 and choices.kl_in_reward == "refuse":
        raise ValueError(
            f"got --algo.kl.init_coef {args.algo.kl.init_coef:g} without --algo.kl.use_loss: the KL penalty would be "
            "part of rewards that creditd's advantages take the place of; expected --algo.kl.use_loss, "
            "--algo.kl.init_coef 0, or --credit.kl_in_reward keep, which adds its returns to the advantages as "
            "OpenRLHF has them"
        )
