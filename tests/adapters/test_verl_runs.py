"""What verl's adapter refuses, the places of verl that it holds on to, its plugin, and the runs of VERL.md."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

pytest.importorskip("transfer_queue", reason="the lane `trainer` installs verl into an environment of its own")
pytest.importorskip("verl", reason="the lane `trainer` installs verl into an environment of its own")

from adapters import verl_batches as own
from adapters.verl_batches import advantages, configured, of_candidates, put, sampled, trainer, with_credit
from conventions.groups import OF_A_LIBRARY
from services import running_service

pytestmark = [
    *OF_A_LIBRARY,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("verl_queue"),
]

IMPORT_LIMIT_S = 60
"""Of a process that imports verl: ten times what it takes here."""


def test_credit_that_takes_too_much_of_the_steps_is_said_once():
    """Its share is a metric from the second step on."""
    made = trainer(configured(*with_credit(**of_candidates(max_credit_share=0))))
    shares, said = [], []
    for step in range(1, 6):
        own.emptied()
        put()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _, metrics = sampled(made, step)
        shares.append(metrics.get("credit/share_of_step"))
        said += [str(one.message) for one in caught if "credit took more than 0%" in str(one.message)]
    assert shares[0] is None
    assert all(0 < share < 1 for share in shares[1:])
    assert len(said) == 1


def test_the_tokenizer_may_be_another_one_than_the_trainer_has(tmp_path):
    """By its folder; without either the place in verl is named."""
    from adapters.tiny import tokenizer

    tokenizer().save_pretrained(tmp_path)
    made = trainer(configured(*with_credit(**of_candidates(tokenizer=f"'{tmp_path}'"))))
    del made.tokenizer
    assert made.replay_buffer._tokenizer().decode([4]) == tokenizer().decode([4])
    lost = trainer(configured(*with_credit(**of_candidates())))
    del lost.tokenizer
    put()
    with pytest.raises(RuntimeError, match=r"PPOTrainer\.tokenizer of verl"):
        sampled(lost)


@pytest.mark.parametrize(
    ("estimator", "keys", "more", "words"),
    [
        ("creditd_scar", {}, [], "adv_estimator=creditd_scar with kind=candidates; expected creditd_shapley"),
        ("gae", {}, [], "adv_estimator=gae with kind=candidates"),
        (
            "creditd_shapley",
            {},
            ["algorithm.use_kl_in_reward=True"],
            "use_kl_in_reward=True, whose penalty would be lost",
        ),
        (
            "creditd_shapley",
            {},
            ["actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean"],
            "mean advantage of a response",
        ),
        ("creditd_shapley", {"reward_weight": 1.0}, ["reward.reward_model.enable=True"], "without a resource pool"),
        ("creditd_shapley", {"on_failur": "mask"}, [], "got 'on_failur'; expected, with kind=candidates, some of"),
        ("creditd_shapley", {"credit_in_eval": "true"}, [], "got 'credit_in_eval'"),
        ("creditd_shapley", {"on_failure": "zero"}, [], "got on_failure 'zero'"),
    ],
)
def test_what_would_lose_credit_is_refused_at_the_start(estimator, keys, more, words):
    """In the words of the keys."""
    with pytest.raises(ValueError, match=words):
        trainer(configured(*with_credit(estimator, **of_candidates(**keys)), *more))


def test_failed_groups_are_refilled_where_verl_was_told_so():
    """Samplers of one's own are not told by verl; dynamic filtering cannot be handed on, and is refused."""
    overrides = with_credit(**of_candidates())
    made = trainer(configured(*overrides, "trainer.v1.sampler.sync_refill_failed_groups=True"))
    assert made.replay_buffer.sync_refill_failed_groups
    assert not trainer(configured(*overrides)).replay_buffer.sync_refill_failed_groups
    filtered = ["+algorithm.filter_groups.enable=True", "+algorithm.filter_groups.metric=acc"]
    with pytest.raises(ValueError, match=r"filter_groups\.enable=True"):
        trainer(configured(*overrides, *(one.replace("+", "++") for one in filtered)))


def test_a_newer_verl_without_the_seam_is_told_by_its_name(monkeypatch):
    """What moved, and which releases are known."""
    from verl.trainer.ppo.v1 import trainer_base

    from creditd.adapters.verl_overlay import install
    from creditd.adapters.verl_seams import SeamMovedError

    monkeypatch.delattr(trainer_base, "compute_advantage_for_multi_trajectories")
    with pytest.raises(
        SeamMovedError, match=r"trainer_base.compute_advantage_for_multi_trajectories of verl.*tested with 0\.9\.1"
    ):
        install()
    monkeypatch.setattr(trainer_base, "compute_advantage_for_multi_trajectories", lambda data: data, raising=False)
    with pytest.raises(SeamMovedError, match="takes no argument batch_keys"):
        install()


PAGE = (Path(__file__).parents[2] / "VERL.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


class Characters:
    """A token is a character."""

    pad_token_id, eos_token_id = 0, 1

    def decode(self, ids, **_):
        """Text of characters."""
        return "".join(map(chr, ids))


def as_configured(command, url):
    """What a command of the page overrides, with a service that is there."""
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "verl.trainer.main_ppo"]
    assert "verl.trainer.main_ppo" not in sys.modules
    assert importlib.util.find_spec("verl.trainer.main_ppo") is not None
    return configured(*(word.replace("http://127.0.0.1:8400", url) for word in words[3:]))


def test_the_run_of_the_page_trains(service, tmp_path, monkeypatch):
    """Its command with its rewards: the configuration is composed, the batch is credited, the loss moves."""
    (rewards,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "my_rewards.py").write_text(rewards)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = as_configured(COMMANDS[0], service)
    made = trainer(config)
    made.tokenizer = Characters()
    texts = [
        f"1. {first}\n2. {second}\n" for first, second in (("two", "six"), ("one", "six"), ("two", "two"), ("a", "b"))
    ]
    ids = {f"a_{place}_0": [*map(ord, text), 1] for place, text in enumerate(texts * 2)}
    put(ids)
    meta, metrics = made.replay_buffer.sample(global_steps=1, partition_id="train", batch_size=1)
    found = advantages(made, meta)
    assert metrics["credit/reward/mean"] == 0.5
    assert metrics["credit/candidates"] == 2.0
    first = found["a_0_0"]
    assert first[4] > 0 > first[10]
    import my_rewards
    from verl.utils.import_utils import load_extern_object

    chosen = config.reward.custom_reward_function
    assert load_extern_object(chosen.path, chosen.name) is my_rewards.whole
    assert my_rewards.whole("words", "it is two", "two") == 1.0


def test_the_ppo_run_of_the_page_trains(tmp_path):
    """With a reward model of the service; what is written sums to what the model says of the text over that of none."""
    import transfer_queue as tq

    from adapters.model_service import worth

    with running_service("{}", directory=tmp_path, script=Path(__file__).with_name("model_service.py")) as url:
        made = trainer(as_configured(COMMANDS[1], url))
        made.tokenizer = Characters()
        ids = {
            f"{uid}_{session}_0": [*map(ord, text), 1]
            for uid, text in (("a", "one"), ("b", "two"))
            for session in (0, 1)
        }
        put(ids)
        meta, metrics = sampled(made)
    data = tq.kv_batch_get(meta.keys, "train", ["rm_scores"])["rm_scores"]
    sums = {key: float(row.sum()) for key, row in zip(meta.keys, data.unbind(), strict=True)}
    nothing = worth(own.QUESTION, "")
    assert sums["b_0_0"] == pytest.approx(worth(own.QUESTION, "two") - nothing, abs=1e-6)
    assert metrics["credit/tokens_naive"] > 0


def test_import_verl_knows_the_estimators_and_loads_no_client():
    """The entry point works in a process that knows nothing of creditd, and is cheap there."""
    program = (
        "import sys, json, verl\n"
        "from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY as known\n"
        "print(json.dumps([sorted(n for n in known if n.startswith('creditd')), sorted(m for m in sys.modules if "
        "m.startswith('creditd'))]))"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.perf_counter() - started < IMPORT_LIMIT_S
    names, modules = json.loads(done.stdout.splitlines()[-1])
    assert names == ["creditd_group", "creditd_oar", "creditd_scar", "creditd_shapley"]
    assert set(modules) == {
        "creditd",
        "creditd.adapters",
        "creditd.adapters.compatibility",
        "creditd.adapters.verl_estimators",
        "creditd.adapters.verl_plugin",
        "creditd.adapters.verl_seams",
    }
