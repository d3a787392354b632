"""Settings of a GRPOTrainer under which credit would be lost, or would not mean what it says: refused at the start."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from trl import GRPOTrainer

from creditd.adapters.compatibility import TRL, demand_seams
from creditd.adapters.credit_config import CreditConfig
from creditd.adapters.span_reward import SpanReward
from creditd.client.bodies import type_of

ZERO_SHARDS_WEIGHTS = 3
"""The stage of ZeRO from which on each process has a part of the weights."""
SCALED_AS = {"batch": ("batch_scaled",), "none": ("centered", "none")}
"""Advantages of creditd that do what `scale_rewards` says; `group`, TRL's default, leaves the choice open."""
_LOSS_OF = "trl.trainer.grpo_trainer"
"""Where TRL's loss is written. What patches TRL before it is imported puts another one in its class."""


def check_loss(trainer: Any) -> None:  # noqa: ANN401 - a GRPOTrainer, which carries no types
    """Refuse a loss that would not train each token on its own advantage, and warn about an untested TRL.

    Args:
        trainer: A `GRPOTrainer`.

    Raises:
        ValueError: If its loss is not TRL's, or averages the advantages of a row.
        SeamMovedError: If TRL has changed where the adapter takes hold of it.
    """
    demand_seams(TRL)
    installed = TRL.installed or "of no release"
    if not TRL.is_tested(installed):
        warnings.warn(
            f"creditd's adapter is tested with TRL {TRL.tested}; this is {installed}", RuntimeWarning, stacklevel=4
        )
    for method in ("_compute_loss", "compute_loss"):
        own, of_trl = getattr(type(trainer), method, None), getattr(GRPOTrainer, method)
        if own is not of_trl:
            owner = next((kind for kind in type(trainer).__mro__ if method in vars(kind)), type(trainer))
            raise ValueError(f"{owner.__name__} has a loss of its own, {method}; expected that of GRPOTrainer")
        if of_trl.__module__ != _LOSS_OF:
            raise ValueError(
                f"GRPOTrainer has a loss out of {of_trl.__module__}, {method}; expected TRL's own, which nobody patched"
            )
    level, loss = trainer.args.importance_sampling_level, trainer.args.loss_type
    if level == "sequence" and loss not in {"cispo", "vespo"}:
        raise ValueError(
            f"importance_sampling_level='sequence' with loss_type={loss!r} trains on the mean advantage of each row, "
            "so the credit of tokens is lost; expected importance_sampling_level='token'"
        )


def check_settings(trainer: Any, config: CreditConfig, place: int) -> None:  # noqa: ANN401 - as above
    """Refuse settings of rewards and time that do not go together with those of the credit.

    Args:
        trainer: A `GRPOTrainer`.
        config: How it asks for credit.
        place: Of creditd's own reward among its reward functions.

    Raises:
        ValueError: If a setting would be ignored, or could not work.
    """
    if isinstance(trainer.reward_funcs[place], SpanReward):
        _check_spans(trainer, place)
    else:
        _check_candidates(trainer, config, place)
    check_deadlines(trainer, deadline_s=config.deadline_s)


def check_deadlines(trainer: Any, **deadlines_s: float) -> None:  # noqa: ANN401 - as above
    """Refuse deadlines that are longer than other processes wait.

    Args:
        trainer: A `GRPOTrainer`.
        deadlines_s: Seconds by their names.

    Raises:
        ValueError: If one of several processes could be asked for longer than the others wait for it.
    """
    limit = float(trainer.args.ddp_timeout)
    for name, deadline_s in deadlines_s.items():
        if trainer.accelerator.num_processes > 1 and deadline_s >= limit:
            raise ValueError(
                f"got {name}={deadline_s:g} with ddp_timeout={limit:g}: the processes that wait for the answer "
                "would give up before it; expected a shorter deadline"
            )


def check_type(accelerator: Any, policy: Any) -> None:  # noqa: ANN401 - neither carries types here
    """Refuse a gradient by the trainer's own model where each process will have a part of it in a short type.

    Of a whole model a copy in float32 is made; of a part none can be.

    Args:
        accelerator: Of the trainer.
        policy: The model, before it is wrapped.

    Raises:
        ValueError: If FSDP or ZeRO-3 will have it compute in another type than float32.
    """
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind == "FSDP":
        mixed = getattr(accelerator.state.fsdp_plugin, "mixed_precision_policy", None)
        short = getattr(mixed, "param_dtype", None) or policy.dtype
    elif kind == "DEEPSPEED" and getattr(accelerator.state.deepspeed_plugin, "zero_stage", 0) == ZERO_SHARDS_WEIGHTS:
        short = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(str(accelerator.mixed_precision), policy.dtype)
    else:
        return
    if short.itemsize < torch.float32.itemsize:
        raise ValueError(
            f"got in_process=True with the sensitivity 'gradient', of a model that {kind} shards and that computes in "
            f"{short}, in which the order of tokens is lost; expected bf16=False and fp16=False with a model in "
            "float32, sensitivity='perturbation', or a service"
        )


def _check_candidates(trainer: Any, config: CreditConfig, candidate_place: int) -> None:  # noqa: ANN401 - as above
    """Refuse settings under which the credit of candidates would not mean what it says."""
    weights = [float(weight) for weight in trainer.reward_weights]
    if weights[candidate_place] != 1.0:
        raise ValueError(
            f"got reward weight {weights[candidate_place]:g} for the candidate reward; expected 1: credit has the "
            "scale that CreditConfig.advantage gives it, and the other rewards are weighed against it"
        )
    others = sum(weight != 0 for place, weight in enumerate(weights) if place != candidate_place)
    _check_scale(trainer.scale_rewards, config, others)
    if trainer.multi_objective_aggregation == "normalize_then_sum" and others > 1:
        raise ValueError(
            f"got multi_objective_aggregation='normalize_then_sum' with {others} reward functions beside the candidate "
            "reward, whose weighted sum creditd standardises; expected 'sum_then_normalize', or one such function"
        )


def _check_spans(trainer: Any, place: int) -> None:  # noqa: ANN401 - as above
    """Refuse settings under which the credit of spans would not mean what it says."""
    weights = [float(weight) for weight in trainer.reward_weights]
    if not 0.0 < weights[place] < math.inf:
        raise ValueError(
            f"got reward weight {weights[place]:g} for the span reward; expected a number above 0: the other rewards "
            "count in units of it"
        )
    if trainer.scale_rewards != "group":
        raise ValueError(
            f"got scale_rewards={trainer.scale_rewards!r} with a SpanReward, whose advantages are standardised over "
            "each group; expected scale_rewards='group'"
        )
    others = sum(weight != 0 for column, weight in enumerate(weights) if column != place)
    if trainer.multi_objective_aggregation == "normalize_then_sum" and others:
        raise ValueError(
            f"got multi_objective_aggregation='normalize_then_sum' with {others} reward functions beside the span "
            "reward, to which creditd adds their weighted sum; expected 'sum_then_normalize'"
        )


def _check_scale(scale: str, config: CreditConfig, others: int) -> None:
    """Refuse a `scale_rewards` that asks for another scale than the advantages will have."""
    fitting = SCALED_AS.get(scale)
    if fitting is None:
        return
    if type_of(config.advantage) not in fitting:
        raise ValueError(
            f"got scale_rewards={scale!r} with CreditConfig(advantage={config.advantage!r}), which has another scale; "
            f"expected advantage={fitting[0]!r}, or scale_rewards='group'"
        )
    if others:
        raise ValueError(
            f"got scale_rewards={scale!r} with {others} reward functions beside the candidate reward, whose advantage "
            "creditd standardises over each group; expected scale_rewards='group', or reward weights of 0 for them"
        )
