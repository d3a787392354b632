"""The contract of all adapters, kept by that of SkyRL: through its generator, its trainer and its estimators."""

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
        register()
        settings = world.validated(*world.OURS)
        extras = [
            {"label": label, "says": world.turns_of(row, mask)[1]}
            for label, row, mask in zip(LABELS, rollouts.words, rollouts.masks, strict=True)
        ]
        generator = world.generator(settings, rollouts.words, written=rollouts.masks)
        credit = LoopCredit(rollouts.reward(), config, tokenizer=world.tokenizer(), longest=LONGEST)
        trains = world.trainer(settings, CreditGenerator(generator, credit, settings, environment_weight=0.0))
        data = world.stepped(trains, *world.batch([PROMPTS[0], PROMPTS[GROUP]], extras=extras))
        lengths = list(map(len, rollouts.ids))
        assert world.by_rows(data["sequences"][:, -data["advantages"].shape[1] :], lengths) == rollouts.ids
        return world.by_rows(data["advantages"], lengths)
