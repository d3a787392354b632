"""The contract of all adapters, kept by that of verl: its configuration, its queue, its sampler and its advantages."""

from types import SimpleNamespace

import pytest

pytest.importorskip("transfer_queue", reason="the lane `trainer` installs verl into an environment of its own")
pytest.importorskip("verl", reason="the lane `trainer` installs verl into an environment of its own")

from adapters.contract import GROUP, LABELS, LONGEST, PROMPTS, AdapterContract, Tokenizer
from adapters.verl_batches import advantages, configured, of_candidates, put, sampled, trainer, with_credit
from conventions.groups import OF_A_LIBRARY

pytestmark = [
    *OF_A_LIBRARY,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("verl_queue"),
]
GIVEN = {}
"""The rollouts of a test, by the one name that it has."""


def score(prompts, candidates, completions, *, reward_model, **columns):
    """The rewards of those rollouts, as verl's configuration names a function."""
    del completions, columns
    return GIVEN["rollouts"].scores(prompts, candidates, [row["ground_truth"] for row in reward_model])


def judge(prompts, texts):
    """The same for whole texts."""
    return GIVEN["rollouts"].judge(prompts, texts)


class TestVerl(AdapterContract):
    """A batch of two prompts with four sessions each, sampled out of a real TransferQueue."""

    def advantages(self, tmp_path, rollouts, config):
        """What verl's own method leaves in the queue for the loss."""
        del tmp_path
        return self._left(rollouts, config, range(len(rollouts.words)))

    def split(self, tmp_path, rollouts, config):
        """The same where rows of two groups take turns, and verl deals them out to two ranks by their lengths."""
        del tmp_path
        turns = [group * GROUP + place for place in range(GROUP) for group in range(len(rollouts.words) // GROUP)]
        return self._left(rollouts, config, turns, ranks=2)

    def _left(self, rollouts, config, order, ranks=None):
        """Rows as they are put into the queue, and what is there in the end."""
        GIVEN["rollouts"] = rollouts
        keys = {"url": f"'{config.url}'", "on_failure": config.on_failure, "deadline_s": config.deadline_s}
        if rollouts.is_judged:
            estimator = "creditd_scar"
            keys |= {"kind": "spans", "segmentation": "token", "reward": "'pkg://adapters.test_contract_verl:judge'"}
        else:
            estimator, pattern = "creditd_shapley", r"'(\w+) ?(?:;|$)'"
            keys |= {"reward": "'pkg://adapters.test_contract_verl:score'", "parser.pattern": pattern}
            keys = of_candidates(**keys)
        sizes = [
            f"actor_rollout_ref.rollout.n={GROUP}",
            f"data.max_response_length={LONGEST}",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={len(PROMPTS) // GROUP}",
        ]
        made = trainer(configured(*with_credit(estimator, **keys), *sizes))
        made.tokenizer = Tokenizer()
        names = [f"{'ab'[place // GROUP]}_{place % GROUP}_0" for place in range(len(rollouts.words))]
        put(
            {names[place]: rollouts.ids[place] for place in order},
            masks=dict(zip(names, rollouts.masks, strict=True)),
            prompt=(3, 5),
            raw_prompt={
                name: [{"role": "user", "content": prompt}] for name, prompt in zip(names, PROMPTS, strict=True)
            },
            reward_model={name: {"ground_truth": label} for name, label in zip(names, LABELS, strict=True)},
        )
        meta, _ = sampled(made)
        if ranks is not None:
            made.actor_rollout_wg = SimpleNamespace(_dispatch_info={"actor": list(range(ranks))})
            made.use_critic, made.global_steps = False, 1
            meta = made._balance_batch(meta, {})
            assert {key[0] for key in meta.keys[: len(names) // ranks]} == {"a", "b"}
        found = advantages(made, meta)
        return [found[name] for name in names]
