"""A reward function of OpenRLHF's kind for trainings whose rewards are those of creditd alone.

OpenRLHF wants some source of rewards for rollouts (`--reward.remote_url`); the launcher gives it this file where there
is no other one. OpenRLHF executes it by its path, in the processes that generate: nothing is imported.
"""

from __future__ import annotations

from collections.abc import Sequence


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[object]) -> dict[str, list[float]]:
    """No reward: 0 for each completion, which the trainer replaces before anything is trained or logged."""
    del prompts, labels
    return {"rewards": [0.0] * len(queries)}
