"""Credit in OpenRLHF: its own command line, with a few options more.

    python -m creditd.adapters.openrlhf --credit.reward rewards.py:score --credit.parser '{"type": "numbered"}' \
        --algo.advantage.estimator group_norm --rollout.n_samples_per_prompt 8 …  # openrlhf.cli.train_ppo_ray

Options that begin with `--credit.` are creditd's, by the names of the arguments of `CandidateReward`, `SpanReward`,
`CreditConfig` and `SensitivityConfig`; all others go to `openrlhf.cli.train_ppo_ray` as they are. OPENRLHF.md has them
all.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from creditd.adapters.openrlhf_options import split_arguments
from creditd.adapters.openrlhf_settings import CLI, NO_REWARD

_SOURCES = ("--reward.remote_url", "--reward.model_name_or_path", "--train.agent_func_path")


def with_a_source(arguments: Sequence[str]) -> list[str]:
    """OpenRLHF's arguments, with a source of rewards that gives none where there is no other: it wants one.

    Where rewards have to be OpenRLHF's own (`--credit.model`), its settings are refused by this source.

    Args:
        arguments: Those that are OpenRLHF's.

    Returns:
        The same, and perhaps `--reward.remote_url` with the file of `openrlhf_no_reward`.
    """
    given = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    # OpenRLHF's command line takes the beginning of an option for the option.
    named = any(source.startswith(argument) for argument in given if argument != "--" for source in _SOURCES)
    return [*arguments] if named else [*arguments, "--reward.remote_url", NO_REWARD]


def main(arguments: Sequence[str]) -> None:
    """Run OpenRLHF's command line with credit in its trainer.

    Args:
        arguments: Of both, without the program.

    Raises:
        SystemExit: If an option is none.
        SeamMovedError: If this OpenRLHF is not what the adapter stands on.
    """
    choices, others = split_arguments(arguments)
    from creditd.adapters.openrlhf_trainer import install  # noqa: PLC0415 - which imports torch, and the framework

    install(choices)
    sys.argv = [CLI, *with_a_source(others)]
    runpy.run_module(CLI, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
