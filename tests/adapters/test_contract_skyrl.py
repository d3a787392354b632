"""The contract of all adapters, kept by that of SkyRL: through its generator, its trainer and its estimators."""

import asyncio

import pytest

pytest.importorskip("skyrl", reason="the lane `trainer` installs SkyRL into an environment of its own")

from adapters import skyrl_world as world
from adapters.contract import GROUP, LABELS, LONGEST, PROMPTS, AdapterContract
from conventions.groups import OF_A_LIBRARY
from creditd.adapters.loop import LoopCredit
from creditd.adapters.skyrl import CreditGenerator, register

pytestmark = OF_A_LIBRARY


class TestSkyRL(AdapterContract):
    """A batch of two prompts, whose tools are an environment's turns."""

    def advantages(self, tmp_path, rollouts, config):
        """What SkyRL hands to the workers of the policy."""
        del tmp_path
        trains = self._trainer(rollouts, config)
        given, uids = self._batch(rollouts)
        return self._trained_on(trains, rollouts, asyncio.run(trains.generate(given)), uids)

    def split(self, tmp_path, rollouts, config):
        """The same of its asynchronous trainer, which has its groups generated at once and puts them together."""
        del tmp_path
        trains = self._trainer(rollouts, config)
        given, uids = self._batch(rollouts)
        groups = [
            {name: value[start : start + GROUP] if isinstance(value, list) else value for name, value in given.items()}
            for start in range(0, len(PROMPTS), GROUP)
        ]

        async def at_once():
            return await asyncio.gather(*(trains.generator.generate(group) for group in groups))

        return self._trained_on(trains, rollouts, world.together(asyncio.run(at_once())), uids)

    def _trainer(self, rollouts, config):
        """SkyRL's, whose generator is creditd's around its own."""
        register()
        settings = world.validated(*world.OURS)
        generator = world.generator(settings, rollouts.words, written=rollouts.masks)
        credit = LoopCredit(rollouts.reward(), config, tokenizer=world.tokenizer(), longest=LONGEST)
        return world.trainer(settings, CreditGenerator(generator, credit, settings, environment_weight=0.0))

    def _batch(self, rollouts):
        """Two prompts, with what their environments say between turns."""
        extras = [
            {"label": label, "says": world.turns_of(row, mask)[1]}
            for label, row, mask in zip(LABELS, rollouts.words, rollouts.masks, strict=True)
        ]
        return world.batch([PROMPTS[0], PROMPTS[GROUP]], extras=extras)

    def _trained_on(self, trains, rollouts, output, uids):
        """The advantages of each row, which has the tokens that it should have."""
        data = world.trained_on(trains, output, uids)
        lengths = list(map(len, rollouts.ids))
        assert world.by_rows(data["sequences"][:, -data["advantages"].shape[1] :], lengths) == rollouts.ids
        return world.by_rows(data["advantages"], lengths)
