"""Settings of verl's trainer under which credit would be lost, or would not mean what it says: refused at the start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from creditd.adapters.verl_settings import CommonSettings

ESTIMATORS: Mapping[str, str] = {
    "candidates": "creditd_shapley",
    "spans": "creditd_scar",
    "sensitivity": "creditd_oar",
}
"""Which registered estimator passes the advantages of a kind through."""
KEEP_TOKEN_REWARDS = ("gae", "reinforce_plus_plus")
"""Estimators of verl that do not add up the rewards of a response first."""
LOSSES_OF_MEANS = ("geo_mean",)
"""Losses of verl that replace the advantages of a response by their mean."""


def check_trainer(config: Any, common: CommonSettings) -> dict[str, Any]:  # noqa: ANN401 - a DictConfig
    """Refuse what would lose credit, or is lost with a sampler of one's own.

    Args:
        config: Of the trainer, as hydra composes it.
        common: What all kinds take.

    Returns:
        What verl keeps from samplers of one's own, and has to be handed on.

    Raises:
        ValueError: In the words of the keys.
    """
    algorithm, kind = config.algorithm, common.kind
    estimator = str(algorithm.adv_estimator)
    if estimator in ESTIMATORS.values() and ESTIMATORS.get(kind) != estimator:
        raise ValueError(
            f"got algorithm.adv_estimator={estimator} with kind={kind}; expected {ESTIMATORS.get(kind, 'gae')}, or "
            "another "
            "kind"
        )
    if kind == "span_rewards":
        if estimator not in KEEP_TOKEN_REWARDS:
            raise ValueError(
                f"got algorithm.adv_estimator={estimator} with kind=span_rewards, which would add the rewards of "
                "tokens up "
                f"first; expected one of {', '.join(KEEP_TOKEN_REWARDS)}, or kind=spans"
            )
    elif estimator in {"gae", "remax", "creditd_group"}:
        raise ValueError(
            f"got algorithm.adv_estimator={estimator} with kind={kind}, whose advantages would be replaced; expected "
            f"{ESTIMATORS[kind]}"
        )
    elif algorithm.get("use_kl_in_reward", False):
        raise ValueError(
            "got algorithm.use_kl_in_reward=True, whose penalty would be lost: advantages come from creditd; expected "
            "actor_rollout_ref.actor.use_kl_loss=True in its place"
        )
    loss = str((config.actor_rollout_ref.actor.get("policy_loss") or {}).get("loss_mode", "vanilla"))
    if loss in LOSSES_OF_MEANS:
        raise ValueError(
            f"got actor_rollout_ref.actor.policy_loss.loss_mode={loss}, which trains on the mean advantage of a "
            "response, so "
            "the credit of tokens is lost; expected another loss"
        )
    if (algorithm.get("filter_groups") or {}).get("enable", False):
        raise ValueError(
            "got algorithm.filter_groups.enable=True, which verl does not hand to a sampler of one's own; expected "
            "False"
        )
    model = (config.get("reward") or {}).get("reward_model") or {}
    late = bool(model.get("enable", False)) and not model.get("enable_resource_pool", False)
    if late and (kind in {"span_rewards", "sensitivity"} or common.reward_weight):
        raise ValueError(
            "got reward.reward_model.enable=True without a resource pool: verl finds its rewards only when the batch "
            "has been "
            f"sampled, and kind={kind} with reward_weight={common.reward_weight:g} needs them then; expected "
            "reward.reward_model.enable_resource_pool=True, or no reward model of verl"
        )
    refill = bool(config.trainer.v1.sampler.get("sync_refill_failed_groups", False))
    return {"sync_refill_failed_groups": True, "gen_batch_size": 1} if refill else {}
