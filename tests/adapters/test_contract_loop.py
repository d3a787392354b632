"""The contract of all adapters, held by loops written by hand and by SkyRL's generator."""

import asyncio

from adapters.contract import GROUP, LABELS, LONGEST, PROMPTS, AdapterContract, Tokenizer
from adapters.test_loop_credit import Threads
from adapters.test_skyrl import BatchMetadata, Generator, TrajectoryID, settings
from creditd.adapters.loop import LoopCredit
from creditd.adapters.skyrl import CreditGenerator


def loop(rollouts, config, processes=None):
    """A loop's credit."""
    return LoopCredit(rollouts.reward(), config, tokenizer=Tokenizer(), longest=LONGEST, processes=processes)


class TestLoop(AdapterContract):
    """`LoopCredit` with lists."""

    def advantages(self, tmp_path, rollouts, config):
        """What it returns."""
        del tmp_path
        return self._of(slice(None), rollouts, config)

    def split(self, tmp_path, rollouts, config):
        """Three rows in one process and five in another, which have a group between them."""
        del tmp_path
        shares = [slice(0, 3), slice(3, 8)]
        first, second = Threads(2).run(lambda member: self._of(shares[member.rank], rollouts, config, member))
        return [*first, *second]

    def _of(self, own, rollouts, config, processes=None):
        """What a process has for its rows."""
        found = loop(rollouts, config, processes).advantages(
            PROMPTS[own],
            rollouts.ids[own],
            group_size=GROUP,
            completion_masks=rollouts.masks[own],
            columns={"label": LABELS[own]},
        )
        return found.token_advantages


class TestSkyRL(AdapterContract):
    """`CreditGenerator` around a generator with SkyRL's documented output."""

    def advantages(self, tmp_path, rollouts, config):
        """The rewards of tokens, which `creditd` hands on."""
        del tmp_path
        return self._generated(slice(None), rollouts, loop(rollouts, config))

    def split(self, tmp_path, rollouts, config):
        """Its fully asynchronous trainer calls `generate` once for each prompt; no call has a part of a group."""
        del tmp_path
        credit = loop(rollouts, config)
        calls = [slice(start, start + GROUP) for start in range(0, len(PROMPTS), GROUP)]
        return [row for call in calls for row in self._generated(call, rollouts, credit)]

    def _generated(self, own, rollouts, credit):
        """The rewards that one call of `generate` comes back with."""
        prompts = PROMPTS[own]
        generator = Generator(
            response_ids=rollouts.ids[own],
            prompt_token_ids=[[3, 5]] * len(prompts),
            loss_masks=rollouts.masks[own],
            rewards=[0.0] * len(prompts),
            stop_reasons=["stop"] * len(prompts),
        )
        batch = {
            "prompts": prompts,
            "env_classes": ["words"] * len(prompts),
            "env_extras": [{"label": label} for label in LABELS[own]],
            "trajectory_ids": [TrajectoryID(prompt, place) for place, prompt in enumerate(prompts)],
            "batch_metadata": BatchMetadata(0, "train"),
        }
        made = CreditGenerator(generator, credit, settings(), environment_weight=0.0)
        return asyncio.run(made.generate(batch))["rewards"]
