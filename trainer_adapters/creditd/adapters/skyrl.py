"""Credit in SkyRL: a generator around yours, whose rewards are token advantages, and an estimator that hands them on.

    from creditd.adapters.skyrl import CandidateReward, CreditConfig, CreditGenerator, LoopCredit, register

    register()  # before SkyRL reads its configuration, which says trainer.algorithm.advantage_estimator=creditd
    …
    credit = LoopCredit(CandidateReward(score, parser={"type": "numbered"}), CreditConfig(), tokenizer=tokenizer)
    generator = CreditGenerator(generator, credit, cfg)

SkyRL takes one reward per token where a generator returns lists; `creditd` is the estimator that takes them for
advantages. Nothing here computes a credit, and nothing imports SkyRL but `register`. Tested with SkyRL 0.3.0.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

from creditd.adapters.candidate_reward import CandidateReward
from creditd.adapters.compatibility import SKYRL, SeamMovedError, demand_seams
from creditd.adapters.credit_config import Anneal, CreditConfig, anneal
from creditd.adapters.loop_credit import LoopAdvantages, LoopCredit
from creditd.adapters.span_reward import SpanReward
from creditd.adapters.step_share import StepShare

__all__ = [
    "Anneal",
    "CandidateReward",
    "CreditConfig",
    "CreditGenerator",
    "LoopCredit",
    "SpanReward",
    "anneal",
    "check_settings",
    "handed_on",
    "register",
]

log = logging.getLogger("creditd.adapters.skyrl")

NAME = "creditd"
"""What `trainer.algorithm.advantage_estimator` is called."""
_EVAL = "eval"
_CUT_OFF = ("length", "abort")
"""Why generation ended, where it is not that the policy ended it."""
_REFUSED = (
    ("generator.step_wise_trajectories", (True,), "SkyRL looks at the reward of the last step alone"),
    ("generator.merge_stepwise_output", (True,), "it belongs to step-wise training"),
    ("generator.apply_overlong_filtering", (True,), "of a masked response nobody knows what the policy wrote"),
    ("trainer.critic.model.path", None, "a critic would learn advantages"),
    (
        "trainer.algorithm.use_kl_in_reward",
        (True,),
        "the penalty would be added to advantages: use_kl_loss is the other",
    ),
    ("trainer.algorithm.advantage_batch_normalize", (True,), "it would move and scale every advantage once more"),
    ("trainer.algorithm.dynamic_sampling.type", None, "it filters by the spread of rewards, which are advantages here"),
    (
        "trainer.fully_async.sample_full_batch",
        (True,),
        "it filters by the spread of rewards, which are advantages here",
    ),
    ("trainer.algorithm.policy_loss_type", ("cross_entropy",), "it does not look at advantages"),
)
"""Settings, their values under which credit is lost or changed, and how; None: any value that is one."""


class CreditGenerator:
    """A generator of SkyRL whose rewards are creditd's token advantages; everything else of it is the wrapped one's.

    Rows of a prompt follow each other, as SkyRL repeats prompts; their `instance_id` says which they are. Rewards of
    the environment are rewards of the whole response, beside creditd's; of rewards for each turn or token the sum, as
    SkyRL's own metrics have it. A completion whose `stop_reasons` say `length` or `abort` was cut off. Schedules count
    from 0 at SkyRL's first step, which it calls 1. Evaluation is left as it is. Batches are asked about one after the
    other, also where SkyRL generates many groups at once.

    Args:
        generator: Any with SkyRL's `async generate(input_batch)`.
        credit: Whom to ask, and for what.
        config: SkyRL's whole configuration (`SkyRLTrainConfig`).
        environment_weight: Weight of the environment's rewards; 0 leaves them out.

    Raises:
        ValueError: If the configuration has another estimator than `creditd`, or a setting under which credit would be
            lost or changed.
    """

    def __init__(
        self,
        generator: Any,  # noqa: ANN401 - SkyRL's
        credit: LoopCredit,
        config: Any,  # noqa: ANN401 - SkyRL's
        *,
        environment_weight: float = 1.0,
    ) -> None:
        check_settings(config)
        self._generator, self._credit, self._weight = generator, credit, float(environment_weight)
        self._in_turn = ThreadPoolExecutor(1, thread_name_prefix="creditd")  # a LoopCredit is asked by one at a time
        self._share: StepShare | None = None
        if not _set_to(config, "trainer.fully_async.enabled"):
            self._share = StepShare(
                credit.reward.creditor.config.max_credit_share,
                "a service nearer to the trainer helps, and CreditConfig(max_credit_share=…) changes when this is said",
            )
        self._is_quiet = "disable_tqdm" in inspect.signature(generator.generate).parameters

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the wrapped one has
        """What the wrapped generator has."""
        if name.startswith("_"):
            raise AttributeError(name)  # of this class, and not there yet: a copy is being made
        return getattr(self._generator, name)

    async def generate(self, input_batch: Mapping[str, Any], disable_tqdm: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002 - SkyRL looks for the name
        """What the wrapped generator makes, with one advantage for each token in the place of rewards.

        Args:
            input_batch: SkyRL's `GeneratorInput`.
            disable_tqdm: Handed on to a generator that knows it.

        Returns:
            Its `GeneratorOutput`: `rewards` holds lists of floats, exactly 0 where the loss mask is; `rollout_metrics`
            has those of credit, and `credit/reward/mean`, the mean of what completions are worth.

        Raises:
            ValueError: If rows are not whole groups of prompts in their order, if there are more of them than prompts
                (step-wise training), or if a reward of the environment is no number.
            CreditdError: As the failure policy has it.
        """
        options = {"disable_tqdm": disable_tqdm} if self._is_quiet else {}
        output = dict(await self._generator.generate(input_batch, **options))
        metadata = input_batch.get("batch_metadata")
        if metadata is not None and str(getattr(metadata, "training_phase", "")) == _EVAL:
            if self._share is not None:
                self._share.interrupted()
            return output
        step = 0 if metadata is None else max(int(metadata.global_step) - 1, 0)
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._in_turn, self._credited, input_batch, output, step)
        log.info("step %d: credit of request %s: %s", step, found.request_id, found.metrics)
        metrics = dict(output.get("rollout_metrics") or {}) | found.metrics
        if self._share is not None:
            metrics |= self._share.of_step(found.metrics["credit/seconds"])
        return output | {"rewards": found.token_advantages, "rollout_metrics": metrics}

    def _credited(self, batch: Mapping[str, Any], output: Mapping[str, Any], step: int) -> LoopAdvantages:
        responses, prompts = output["response_ids"], batch["prompts"]
        if len(responses) != len(prompts) or output.get("is_last_step") is not None:
            raise ValueError(
                f"got {len(responses)} responses to {len(prompts)} prompts; expected one each: in step-wise training a "
                "reward belongs to a step, and SkyRL looks at the last one alone"
            )
        columns = {"env_class": batch["env_classes"]}
        if batch.get("env_extras") is not None:
            columns["env_extras"] = batch["env_extras"]
        asked, answered = batch.get("trajectory_ids"), output.get("trajectory_ids")
        if asked and answered and [_identity(one) for one in asked] != [_identity(one) for one in answered]:
            raise ValueError("got trajectory_ids in another order than they were asked for; expected SkyRL's own order")
        reasons = output.get("stop_reasons")
        return self._credit.advantages(
            prompts,
            responses,
            group_size=_group_size(asked),
            groups=[one.instance_id for one in asked or ()],
            step=step,
            prompt_ids=output["prompt_token_ids"],
            completion_masks=output["loss_masks"],
            cut_off=None if reasons is None else [reason in _CUT_OFF for reason in reasons],
            other_rewards=_beside(output["rewards"], self._weight),
            columns=columns,
        )


def handed_on(
    token_level_rewards: Any,  # noqa: ANN401 - a tensor
    response_mask: Any,  # noqa: ANN401 - a tensor
    **_: object,
) -> tuple[Any, Any]:
    """SkyRL's estimator for advantages that came as rewards of tokens.

    Args:
        token_level_rewards: Shape (B, L), what `CreditGenerator` returned, filled up.
        response_mask: Shape (B, L), 1 at tokens of the response.

    Returns:
        Advantages and returns, both of shape (B, L): the same numbers, 0 where the mask is.
    """
    advantages = token_level_rewards * response_mask
    return advantages, advantages


def register() -> None:
    """Make `trainer.algorithm.advantage_estimator=creditd` known to SkyRL.

    In the process that is started first, before `validate_cfg` and `initialize_ray`, which hands what is known then on
    to all others. Called again it changes nothing.

    Raises:
        ImportError: If SkyRL is not installed.
        SeamMovedError: If SkyRL has no longer what this stands on.
    """
    demand_seams(SKYRL)
    from skyrl.backends.skyrl_train.utils.ppo_utils import AdvantageEstimatorRegistry  # noqa: PLC0415 - a trainer has it

    if NAME not in AdvantageEstimatorRegistry.list_available():
        AdvantageEstimatorRegistry.register(NAME, handed_on)


def check_settings(config: Any) -> None:  # noqa: ANN401 - SkyRL's
    """Refuse a configuration of SkyRL under which advantages of tokens would be lost or changed.

    Args:
        config: The whole of it (`SkyRLTrainConfig`).

    Raises:
        ValueError: With the setting, and what would become of the credit.
    """
    estimator = _set_to(config, "trainer.algorithm.advantage_estimator")
    if estimator != NAME:
        raise ValueError(
            f"got trainer.algorithm.advantage_estimator={estimator}; expected {NAME}: any other takes advantages of "
            "tokens for rewards, and makes advantages of their sums"
        )
    for path, values, reason in _REFUSED:
        value = _set_to(config, path)
        if (value is not None and value != "") if values is None else value in values:
            raise ValueError(f"got {path}={value}, with which creditd cannot be trained on: {reason}")


def _set_to(config: Any, path: str) -> Any:  # noqa: ANN401 - as above
    for part in path.split("."):
        if not hasattr(config, part):
            raise SeamMovedError(
                f"SkyRL has no setting {path} any more; expected a release that creditd is tested with: {SKYRL.tested}"
            )
        config = getattr(config, part)
    return config


def _group_size(identities: Sequence[Any] | None) -> int:
    """How many rows answer a prompt, all of them alike."""
    if not identities:
        raise ValueError(
            "got no trajectory_ids; expected those of SkyRL's trainer, which say what answers which prompt"
        )
    runs = [(name, len(list(run))) for name, run in groupby(identities, key=lambda one: one.instance_id)]
    sizes = sorted({size for _, size in runs})
    if len(sizes) != 1 or len({name for name, _ in runs}) != len(runs):
        raise ValueError(f"got groups of {sizes} rows; expected as many rows for each prompt, one after the other")
    return sizes[0]


def _beside(rewards: Sequence[Any], weight: float) -> list[float | None] | None:
    """The environment's rewards of whole responses, weighed; None where they do not count."""
    if weight == 0.0:
        return None
    return [None if reward is None else weight * _whole(reward, place) for place, reward in enumerate(rewards)]


def _whole(reward: Any, place: int) -> float:  # noqa: ANN401 - as above
    """A reward of a whole response, or the sum of those of its turns or tokens."""
    values = reward.tolist() if hasattr(reward, "tolist") else reward
    try:
        return math.fsum(values) if isinstance(values, Sequence) else float(values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"got {type(reward).__name__} as the environment's reward of response {place}; expected a number, or one "
            "for each token"
        ) from error


def _identity(one: Any) -> tuple[Any, Any]:  # noqa: ANN401 - SkyRL's TrajectoryID
    return one.instance_id, one.repetition_id
