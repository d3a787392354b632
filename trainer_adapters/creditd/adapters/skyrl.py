"""Credit in SkyRL: a generator around yours, whose rewards are token advantages, and an estimator that hands them on.

    from creditd.adapters.skyrl import CandidateReward, CreditConfig, CreditGenerator, LoopCredit, register

    register()  # then trainer.algorithm.advantage_estimator=creditd
    credit = LoopCredit(CandidateReward(score, parser={"type": "numbered"}), CreditConfig(), tokenizer=tokenizer)
    generator = CreditGenerator(generator, credit)

SkyRL takes one reward per token where a generator returns lists; `creditd` is the estimator that takes them for
advantages. Nothing here computes a credit, and nothing imports SkyRL but `register`. Written for SkyRL 0.3.0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from creditd.adapters.candidate_reward import CandidateReward
from creditd.adapters.credit_config import Anneal, CreditConfig, anneal
from creditd.adapters.loop_credit import LoopAdvantages, LoopCredit
from creditd.adapters.span_reward import SpanReward

__all__ = [
    "Anneal",
    "CandidateReward",
    "CreditConfig",
    "CreditGenerator",
    "LoopCredit",
    "SpanReward",
    "anneal",
    "handed_on",
    "register",
]

NAME = "creditd"
"""What `trainer.algorithm.advantage_estimator` is called."""
_EVAL = "eval"


class CreditGenerator:
    """A generator of SkyRL whose rewards are creditd's token advantages; everything else of it is the wrapped one's.

    Rows of a prompt follow each other, as SkyRL repeats prompts; their `instance_id` says which they are. Rewards of
    the environment are rewards of the whole response, beside creditd's. Evaluation is left as it is.

    Args:
        generator: Any with SkyRL's `async generate(input_batch)`.
        credit: Whom to ask, and for what.
        environment_weight: Weight of the environment's rewards; 0 leaves them out.
    """

    def __init__(self, generator: Any, credit: LoopCredit, *, environment_weight: float = 1.0) -> None:  # noqa: ANN401 - SkyRL's
        self._generator, self._credit, self._weight = generator, credit, float(environment_weight)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the wrapped one has
        """What the wrapped generator has."""
        return getattr(self._generator, name)

    async def generate(self, input_batch: Mapping[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401 - SkyRL's
        """What the wrapped generator makes, with one advantage for each token in the place of rewards.

        Args:
            input_batch: SkyRL's `GeneratorInput`.
            args: Handed on.
            kwargs: Handed on.

        Returns:
            Its `GeneratorOutput`: `rewards` holds lists of floats, exactly 0 where the loss mask is; `rollout_metrics`
            has those of credit, and `credit/reward`, the mean of what completions are worth.

        Raises:
            ValueError: If rows are not whole groups of prompts in their order, if there are more of them than prompts
                (step-wise training), or if the environment gives a reward to each token.
            CreditdError: As the failure policy has it.
        """
        output = dict(await self._generator.generate(input_batch, *args, **kwargs))
        metadata = input_batch.get("batch_metadata")
        if metadata is not None and str(getattr(metadata, "training_phase", "")) == _EVAL:
            return output
        step = 0 if metadata is None else int(metadata.global_step)
        found = await asyncio.to_thread(self._credited, input_batch, output, step)
        metrics = dict(output.get("rollout_metrics") or {}) | found.metrics
        known = [reward for reward in found.rewards if reward is not None]
        if known:
            metrics["credit/reward"] = sum(known) / len(known)
        return output | {"rewards": found.token_advantages, "rollout_metrics": metrics}

    def _credited(self, batch: Mapping[str, Any], output: Mapping[str, Any], step: int) -> LoopAdvantages:
        responses, prompts = output["response_ids"], batch["prompts"]
        if len(responses) != len(prompts):
            raise ValueError(
                f"got {len(responses)} responses to {len(prompts)} prompts; expected one each: in step-wise training a "
                "reward belongs to a step, and SkyRL looks at the last one alone"
            )
        columns = {"env_class": batch["env_classes"]}
        if batch.get("env_extras") is not None:
            columns["env_extras"] = batch["env_extras"]
        return self._credit.advantages(
            prompts,
            responses,
            group_size=_group_size(batch.get("trajectory_ids")),
            step=step,
            prompt_ids=output["prompt_token_ids"],
            completion_masks=output["loss_masks"],
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
    """Make `trainer.algorithm.advantage_estimator=creditd` known; in the driver, before the trainer is built.

    SkyRL hands its registry on to its workers. Called again it changes nothing.

    Raises:
        ImportError: If SkyRL is not installed, or has its registry elsewhere.
    """
    from skyrl.backends.skyrl_train.utils.ppo_utils import AdvantageEstimatorRegistry  # noqa: PLC0415 - a trainer has it

    if NAME not in AdvantageEstimatorRegistry.list_available():
        AdvantageEstimatorRegistry.register(NAME, handed_on)


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
    """The environment's rewards, weighed; None where they do not count."""
    if weight == 0.0:
        return None
    if any(isinstance(reward, Sequence) for reward in rewards):
        raise ValueError(
            "got one reward of the environment for each token; expected one for each response, or environment_weight=0"
        )
    return [None if reward is None else weight * float(reward) for reward in rewards]
