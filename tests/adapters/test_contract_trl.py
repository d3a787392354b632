"""The contract of all adapters, held by TRL's own trainer."""

import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")

from adapters import contract
from adapters.contract import GROUP, PROMPTS, AdapterContract
from adapters.tiny import VOCABULARY
from adapters.trainers import MARKS, Watch, scripted, trainer_of

pytestmark = MARKS


def test_the_words_are_those_of_the_tiny_model():
    """The contract reads without torch."""
    assert contract.WORDS == VOCABULARY


class TestTRL(AdapterContract):
    """`CreditGRPOTrainer` in a step of a tiny model, whose completions are written beforehand."""

    def advantages(self, tmp_path, rollouts, config):
        """What its loss takes, without padding."""
        masks = None if rollouts.written is None else rollouts.masks
        trainer = trainer_of(
            tmp_path,
            rewards=rollouts.reward(),
            credit=config,
            rollout_func=scripted(rollouts.words, masks=masks),
            columns={"label": ["a", "b", "c", "d"] * 4},
            shuffle_dataset=False,
            max_steps=1,
            num_generations=GROUP,
            per_device_train_batch_size=len(PROMPTS),
        )
        watch = Watch(trainer)
        trainer.train()
        ((_, _, advantages),) = watch.generated
        for row, ids in enumerate(rollouts.ids):
            assert not advantages[row, len(ids) :].any()
        return [advantages[row, : len(ids)].tolist() for row, ids in enumerate(rollouts.ids)]
