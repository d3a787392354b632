"""Estimators of advantages by name for verl: `algorithm.adv_estimator=creditd_shapley`, `…_scar`, `…_oar`, `…_group`.

verl hands an estimator rewards, masks and the names of groups: no tokens, no texts, no names of rows. So the first
three have nothing to compute from: a sampler asks, and lays what it found over their place. `creditd_group` needs
rewards alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from creditd.adapters.verl_seams import seam

if TYPE_CHECKING:
    import torch

_SAMPLERS: Mapping[str, str] = {
    "creditd_shapley": "candidates",
    "creditd_scar": "spans",
    "creditd_oar": "sensitivity",
}


def register() -> None:
    """Make the names known to verl in this process; again is the same.

    Raises:
        SeamMovedError: If verl has no registry where it was.
    """
    known = seam("verl.trainer.ppo.core_algos", "register_adv_est")
    for name in _SAMPLERS:
        known(name)(_PASSED_THROUGH[name])
    known("creditd_group")(group_advantages)


def _passed_through(name: str) -> Callable[..., Any]:
    """An estimator whose place a sampler takes."""

    def estimator(*_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Refuse: there is nothing here to compute advantages of tokens from."""
        raise RuntimeError(
            f"algorithm.adv_estimator={name} has no advantages without the sampler of creditd; expected "
            "trainer.v1.sampler.custom_sampler.path=pkg://creditd.adapters.verl, "
            "trainer.v1.sampler.custom_sampler.name=CreditReplayBuffer (CreditReplayBufferAsync in asynchronous "
            "modes) and "
            f"+trainer.v1.sampler.sampler_kwargs.kind={_SAMPLERS[name]}, with trainer.use_v1=True"
        )

    estimator.__name__ = name
    return estimator


_PASSED_THROUGH = {name: _passed_through(name) for name in _SAMPLERS}


def group_advantages(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    config: Any = None,
    index: Any = None,
    non_tensor_batch: Any = None,
    batch: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages of whole responses by the client's `group`.

    Args:
        token_level_rewards: Shape (B, T); a response is worth their sum where its mask is.
        response_mask: Shape (B, T). A row without any is padding: it is in no group, and has 0.
        config: `creditd` in it, a mapping, is handed to `Client.group` (`advantage`, `convention`, …) but for `url`,
            which says whom to ask; without it GRPO in verl's convention, in this process.
        index: The name of each row's group.
        non_tensor_batch: Has `uid` where `index` is not given.
        batch: Not looked at.
        kwargs: Not looked at.

    Returns:
        Twice the same of shape (B, T), the advantage of the response on every token of its mask.

    Raises:
        ValueError: If no groups are named.
        CreditdError: Whatever the client raises, also for a reward that is not finite.
    """
    from omegaconf import OmegaConf  # noqa: PLC0415 - as below

    from creditd.client import Client  # noqa: PLC0415 - the plugin has to be cheap in every process

    del batch, kwargs
    uids = index if index is not None else (non_tensor_batch or {}).get("uid")
    if uids is None:
        raise ValueError("creditd_group: got no names of groups; expected `index`, or `uid` in non_tensor_batch")
    given: Any = (config or {}).get("creditd", None) or {}
    options: dict[str, Any] = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else dict(given)
    written = response_mask != 0
    rewards = (token_level_rewards * written).sum(dim=1).tolist()
    groups: dict[Any, list[int]] = {}
    for row, (uid, some) in enumerate(zip(list(uids), written.any(dim=1).tolist(), strict=True)):
        if some:
            groups.setdefault(uid, []).append(row)
    advantages = token_level_rewards.new_zeros(token_level_rewards.shape[0])
    if groups:
        named: dict[str, Any] = {"advantage": "grpo", "convention": "verl", **options}
        url = named.pop("url", "local:")
        counts = written.sum(dim=1).tolist()
        with Client(url) as client:
            found = client.group(
                [[rewards[row] for row in rows] for rows in groups.values()],
                n_tokens=[[counts[row] for row in rows] for rows in groups.values()],
                **named,
            )
        for rows, values in zip(groups.values(), found.advantages, strict=True):
            advantages[rows] = advantages.new_tensor(values.tolist())
    tokens = advantages.unsqueeze(1) * written
    return tokens, tokens
