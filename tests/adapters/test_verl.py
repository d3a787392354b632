"""verl's own configuration, queue, sampler, advantages and loss, with creditd's sampler in the place of its own."""

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

import numpy as np
import pytest

pytest.importorskip("transfer_queue", reason="the lane `trainer` installs verl into an environment of its own")
pytest.importorskip("verl", reason="the lane `trainer` installs verl into an environment of its own")

from adapters import verl_batches as own
from adapters.verl_batches import IDS, advantages, configured, of_candidates, put, trainer, with_credit
from conventions.groups import OF_A_LIBRARY
from creditd.client import Client, CreditdError, TransportError
from services import running_service

pytestmark = [*OF_A_LIBRARY, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

NOBODY = "'http://127.0.0.1:9'"
REWARDS = [[0.25, 1.0], [0.5, 0.5, 0.25], [1.0], [0.25, 0.25, 0.5]]
SPANS = [[(0, 1), (2, 3)], [(0, 1), (2, 3), (4, 5)], [(0, 1)], [(0, 1), (2, 3), (4, 5)]]
UTILITIES = [[1.0, 0.5], [1.0, 0.5]]
IMPORT_LIMIT_S = 60
"""Of a process that imports verl: ten times what it takes here."""


@pytest.fixture(scope="module", autouse=True)
def queue():
    """A real TransferQueue. Its storage wants more processors than there may be; Ray is told of some."""
    import ray
    import transfer_queue as tq

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    tq.init()
    yield
    tq.close()
    ray.shutdown()


@pytest.fixture(autouse=True)
def _empty():
    """Each test has the queue to itself, and no advantages of another one."""
    from creditd.adapters.verl_overlay import OVERLAY

    OVERLAY.keep({})
    own.emptied()
    own.emptied("val")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service of its own."""
    with running_service(directory=tmp_path_factory.mktemp("service")) as url:
        yield url


def by_client(url="local:", **options):
    """What creditd says of the batch, by the key of each row, in the type of a trainer."""
    with Client(url) as client:
        found = client.shapley(
            REWARDS,
            groups=[0, 0, 1, 1],
            spans=SPANS,
            n_tokens=[4, 5, 2, 6],
            **{"tokens": {"other": "set"}, "expect": {"group_size": 2}} | options,
        )
    return own.as_float32(dict(zip(IDS, found.token_advantages.to_list(), strict=True)))


def sampled(made, step=1, partition="train"):
    """A batch, and the metrics that come with it."""
    return made.replay_buffer.sample(global_steps=step, partition_id=partition, batch_size=2)


def gradients(meta):
    """How far verl's own loss moves the log-probability of each token, by key."""
    import torch
    import transfer_queue as tq
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
    from verl.utils.config import omega_conf_to_dataclass

    data = tq.kv_batch_get(meta.keys, meta.partition_id, ["advantages", "old_log_probs", "response_mask"])
    lengths = [len(row) for row in data["advantages"].unbind()]
    padded = data.to_padded_tensor()
    log_prob = padded["old_log_probs"].clone().requires_grad_()
    actor = omega_conf_to_dataclass(
        configured("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1").actor_rollout_ref.actor
    )
    loss, _ = compute_policy_loss_vanilla(
        padded["old_log_probs"], log_prob, padded["advantages"], padded["response_mask"], "token-sum", actor
    )
    loss.backward()
    assert torch.isfinite(log_prob.grad).all()
    return {key: (-row[:n]).tolist() for key, row, n in zip(meta.keys, log_prob.grad, lengths, strict=True)}


def test_each_token_moves_by_what_creditd_answered_on_the_wire(service, tmp_path):
    """Configuration alone, one request for the batch; rows reordered and padded behind the sampler, as verl does it."""
    from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size

    record = tmp_path / "record"
    made = trainer(configured(*with_credit(**of_candidates(url=f"'{service}'", record=f"'{record}'"))))
    put()
    meta, metrics = sampled(made)
    assert sorted(meta.keys) == sorted(IDS)
    assert metrics["credit/fallbacks"] == metrics["credit/errors"] == metrics["credit/incomplete"] == 0.0
    assert metrics["credit/reward/mean"] == 0.75
    assert len(list(record.iterdir())) == 1
    meta = upsample_batch_to_divisible_size(meta, 3, 1)
    meta.reorder([5, 3, 0, 2, 4, 1])
    found = advantages(made, meta)
    expected = by_client(service)
    assert {key: found.pop(key) for key in IDS} == expected
    assert len(found) == 2
    assert all(row == [0.0] for row in found.values())
    moved = gradients(meta)
    assert {key: moved[key] for key in IDS} == expected


def test_rewards_of_verl_stay_as_they_are():
    """What its metrics show, and another estimator's advantages in rows that creditd does not know."""
    import transfer_queue as tq

    made = trainer(configured(*with_credit("grpo", **of_candidates())))
    put()
    meta, _ = sampled(made)
    scores = {"c_0_0": [2, 1], "c_1_0": [3, 1]}
    put(scores, rewards={"c_0_0": 1.0, "c_1_0": 0.0})
    meta.keys += list(scores)
    found = advantages(made, meta)
    assert {key: found[key] for key in IDS} == by_client()
    assert found["c_0_0"] == pytest.approx([0.7071] * 2, abs=1e-4)
    assert found["c_1_0"] == pytest.approx([-0.7071] * 2, abs=1e-4)
    sums = tq.kv_batch_get(list(IDS), "train", ["rm_scores"])["rm_scores"]
    assert [float(row.sum()) for row in sums.unbind()] == [0.0, 0.5, 1.0, 1.5]


def test_an_estimator_of_creditd_trains_no_row_that_creditd_was_not_asked_about():
    """A row that somebody put behind the sampler is an error, and no zero."""
    made = trainer(configured(*with_credit(**of_candidates())))
    put()
    meta, _ = sampled(made)
    put({"c_0_0": [2, 1]})
    meta.keys.append("c_0_0")
    with pytest.raises(ValueError, match="row c_0_0 is trained, but creditd was not asked"):
        advantages(made, meta)


def test_tokens_of_tools_are_no_candidates_and_get_nothing():
    """Holes in the mask."""
    masks = {"a_1_0": [1, 1, 0, 0, 1]}
    made = trainer(configured(*with_credit(**of_candidates(turns="all"))))
    put(masks=masks)
    meta, metrics = sampled(made)
    found = advantages(made, meta)
    assert found["a_1_0"][2:4] == [0.0, 0.0]
    assert 0.0 not in found["a_1_0"][4:] + found["a_0_0"]
    assert metrics["credit/candidates"] == 2.0
    assert gradients(meta)["a_1_0"] == found["a_1_0"]


def test_several_outputs_of_a_session_are_one_completion():
    """The candidates of the last one; the earlier one has what tokens outside of candidates have."""
    ids = {"a_0_0": [6, 4], "a_0_1": [2, 5, 3, 1], "a_1_0": IDS["a_1_0"], "b_0_0": [3, 1], "b_1_0": IDS["b_1_0"]}
    made = trainer(configured(*with_credit(**of_candidates())))
    put(ids)
    meta, _ = sampled(made)
    found, expected = advantages(made, meta), by_client()
    assert {key: found[key] for key in ("a_1_0", "b_0_0", "b_1_0")} == {
        key: expected[key] for key in ("a_1_0", "b_0_0", "b_1_0")
    }
    assert found["a_0_1"] == expected["a_0_0"]
    assert found["a_0_0"] == [expected["a_0_0"][1]] * 2


@pytest.mark.parametrize("policy", ["raise", "group_reward", "mask", "local"])
def test_a_dead_service_is_what_the_policy_says(policy):
    """Raised, or counted; nothing of the batch before is left."""
    made = trainer(configured(*with_credit(**of_candidates(url=NOBODY, deadline_s=0.2, on_failure=policy))))
    put()
    if policy == "raise":
        with pytest.raises(TransportError):
            sampled(made)
        return
    meta, metrics = sampled(made)
    found = advantages(made, meta)
    assert metrics["credit/errors"] == 1.0
    assert metrics["credit/fallbacks"] == (0.0 if policy == "local" else 1.0)
    if policy == "local":
        assert found == by_client()
    elif policy == "mask":
        assert found == {key: [0.0] * len(row) for key, row in IDS.items()}
    else:
        with Client("local:") as client:
            plain = [value for row in client.group(UTILITIES, advantage="grpo").advantages for value in row]
        expected = {key: [value] * len(IDS[key]) for key, value in zip(IDS, plain, strict=True)}
        assert found == own.as_float32(expected)


def of_file(name):
    """A reward function by the file that holds it."""
    return f"'{Path(own.__file__)}:{name}'"


def test_a_candidate_without_a_reward_plays_no_part():
    """As the client has it; the function comes from a file."""
    made = trainer(configured(*with_credit(**of_candidates(reward=of_file("unscored")))))
    put()
    meta, metrics = sampled(made)
    assert metrics["credit/fallbacks"] == 0.0
    rewards = [[None if value == 0.5 else value for value in row] for row in REWARDS]
    with Client("local:") as client:
        expected = client.shapley(
            rewards, groups=[0, 0, 1, 1], spans=SPANS, n_tokens=[4, 5, 2, 6], tokens={"other": "set"}
        ).token_advantages.to_list()
    assert advantages(made, meta) == own.as_float32(dict(zip(IDS, expected, strict=True)))


@pytest.mark.parametrize("policy", ["raise", "group_reward", "mask", "local"])
def test_a_reward_that_is_no_number_is_what_the_policy_says(policy):
    """Its set fails and its group with it; the other group is credited. In this process it is as wrong as there."""
    made = trainer(configured(*with_credit(**of_candidates(reward=of_file("unsound"), on_failure=policy))))
    put(IDS | {"b_1_0": [2, 1]})
    if policy in {"raise", "local"}:
        with pytest.raises(CreditdError):
            sampled(made)
        return
    meta, metrics = sampled(made)
    found = advantages(made, meta)
    assert metrics["credit/fallbacks"] == 0.5
    assert found["a_0_0"] == [0.0] * 4
    assert any(found["b_0_0"])


def test_a_reward_of_verl_that_is_missing_is_raised_by_name():
    """The queue has none where the agent loop gave none."""
    made = trainer(configured(*with_credit(**of_candidates(reward_weight=1.0))))
    put(rewards=dict.fromkeys(IDS))
    with pytest.raises((ValueError, RuntimeError), match="rm_scores"):
        sampled(made)


@pytest.mark.parametrize("policy", ["raise", "mask"])
def test_prompts_whose_sessions_failed_are_raised_or_masked(policy):
    """By name; the whole groups are credited as ever."""
    made = trainer(configured(*with_credit(**of_candidates(incomplete_groups=policy))))
    put(IDS | {"c_0_0": [2, 1]}, status="failure")
    if policy == "raise":
        with pytest.raises(ValueError, match="1 of 3 prompts without exactly 2 sessions"):
            made.replay_buffer.sample(global_steps=1, partition_id="train", batch_size=3)
        return
    meta, metrics = made.replay_buffer.sample(global_steps=1, partition_id="train", batch_size=3)
    assert metrics["credit/incomplete"] == 0.2
    assert advantages(made, meta) == by_client() | {"c_0_0": [0.0, 0.0]}


def test_schedules_count_batches_from_0():
    """The first step is 1."""
    keys = of_candidates(
        **{"credit.type": "anneal", "credit.start": "shapley", "credit.end": "leave_one_out", "credit.steps": 2}
    )
    made = trainer(configured(*with_credit(**keys)))
    for step, rule in ((1, "shapley"), (3, "leave_one_out")):
        own.emptied()
        put()
        meta, metrics = sampled(made, step)
        assert metrics["credit/position"] == (step - 1) / 2
        for key, row in advantages(made, meta).items():
            assert row == pytest.approx(by_client(credit=rule)[key], abs=1e-6)


def test_rewards_of_verl_count_with_a_weight():
    """As another reward of the whole response."""
    made = trainer(configured(*with_credit(**of_candidates(reward_weight=2.0))))
    put()
    meta, _ = sampled(made)
    assert advantages(made, meta) == by_client(set_rewards=[0.0, 1.0, 2.0, 3.0])


def test_asynchronous_modes_have_a_sampler():
    """The same numbers; the other sampler is refused there."""
    mode = ["trainer.v1.trainer_mode=colocate_async"]
    made = trainer(configured(*with_credit(name="CreditReplayBufferAsync", **of_candidates()), *mode))
    put()
    meta, _ = sampled(made)
    assert advantages(made, meta) == by_client()
    with pytest.raises(ValueError, match="CreditReplayBufferAsync for others"):
        trainer(configured(*with_credit(**of_candidates()), *mode))


def test_validation_is_not_asked_about():
    """Nor is anything of it kept."""
    made = trainer(configured(*with_credit(**of_candidates(url=NOBODY))))
    put(partition="val")
    _, metrics = sampled(made, partition="val")
    assert not any(name.startswith("credit/") for name in metrics)


def spans(**keys):
    """Keys of spans that a function judges."""
    return {"url": "'local:'", "reward": "'pkg://adapters.verl_batches:judge'"} | keys


def test_spans_have_the_advantages_of_the_client():
    """SCAR in the form of GRPO."""
    made = trainer(configured(*with_credit("creditd_scar", **spans(kind="spans", segmentation="token"))))
    put()
    meta, metrics = sampled(made)
    found = advantages(made, meta)
    texts = [own.Tokenizer().decode([token for token in row if token > 1]) for row in IDS.values()]
    from creditd.adapters.completions import token_offsets

    decode = lambda ids: own.Tokenizer().decode([token for token in ids if token > 1])  # noqa: E731
    with Client("local:") as client:
        expected = client.scar(
            [0, 0, 1, 1],
            texts,
            utility=lambda _, text: own.judge([0], [text])[0],
            token_offsets=[token_offsets(row, decode)[1] for row in IDS.values()],
            groups=[0, 0, 1, 1],
            segmentation="token",
            advantage="pooled",
            expect={"group_size": 2},
        )
    rows = dict(zip(IDS, expected.token_advantages.to_list(), strict=True))
    assert found == own.as_float32(rows)
    assert metrics["credit/evaluations"] > 0


def test_ppo_trains_on_token_rewards_of_spans_by_its_own_gae():
    """Written into the queue where the trainer looks for them; the sum of a response is v(P) − v(∅)."""
    import torch
    import transfer_queue as tq
    from verl.trainer.ppo.core_algos import compute_gae_advantage_return

    made = trainer(configured(*with_credit("gae", **spans(kind="span_rewards"))))
    put()
    meta, metrics = sampled(made)
    data = tq.kv_batch_get(meta.keys, "train", ["rm_scores", "response_mask"])
    sums = {key: float(row.sum()) for key, row in zip(meta.keys, data["rm_scores"].unbind(), strict=True)}
    decode = lambda ids: own.Tokenizer().decode([token for token in ids if token > 1])  # noqa: E731
    assert sums == pytest.approx({key: own.judge([0], [decode(row)])[0] for key, row in IDS.items()}, abs=1e-6)
    assert sum(float(abs(row) > 0) for row in data["rm_scores"].unbind()[0]) >= 1
    values = torch.nested.as_nested_tensor([torch.zeros(len(IDS[key])) for key in meta.keys], layout=torch.jagged)
    from tensordict import TensorDict

    tq.kv_batch_put(keys=meta.keys, partition_id="train", fields=TensorDict({"values": values}, batch_size=[4]))
    found = advantages(made, meta)
    padded = data.to_padded_tensor()
    expected, _ = compute_gae_advantage_return(
        padded["rm_scores"],
        torch.zeros_like(padded["rm_scores"]),
        padded["response_mask"],
        torch.tensor(1.0),
        torch.tensor(1.0),
    )
    for key, row in zip(meta.keys, expected, strict=True):
        assert found[key] == pytest.approx(row[: len(IDS[key])].tolist(), abs=1e-6)
    assert metrics["credit/units"] > 0


def test_advantages_are_reshaped_by_sensitivities_of_a_pinned_policy(tmp_path):
    """Advantages are those of verl's own rewards by the client; another version than the policy has is an error."""
    keys = {"kind": "sensitivity", "model": "policy", "parser": "last_line"}
    with running_service(directory=tmp_path, script=Path(__file__).with_name("policy_service.py")) as url:
        made = trainer(configured(*with_credit("creditd_oar", url=f"'{url}'", **keys)))
        put(rewards={"a_0_0": 1.0, "a_1_0": 0.0, "b_0_0": 0.0, "b_1_0": 0.0})
        meta, metrics = sampled(made)
        found = advantages(made, meta)
        pinned = trainer(configured(*with_credit("creditd_oar", url=f"'{url}'", weight_version="'run:{step}'", **keys)))
        own.emptied()
        put(rewards={"a_0_0": 1.0, "a_1_0": 0.0, "b_0_0": 0.0, "b_1_0": 0.0})
        with pytest.raises(CreditdError, match="weight_version_unknown"):
            sampled(pinned, step=5)
    with Client("local:") as client:
        plain = client.group([[1.0, 0.0], [0.0, 0.0]], advantage="grpo", convention="verl").advantages
    assert sum(found["a_0_0"]) == pytest.approx(4 * plain[0][0], rel=1e-5)
    assert found["b_0_0"] == [0.0, 0.0]
    assert metrics["credit/without_contrast"] == 0.5


def tensors(rewards, uids):
    """What verl hands to an estimator."""
    import torch

    mask = torch.ones(len(rewards), 3)
    mask[-1] = 0.0
    scores = torch.zeros(len(rewards), 3)
    scores[:, 2] = torch.tensor(rewards)
    return {"token_level_rewards": scores, "response_mask": mask, "index": np.array(uids, dtype=object)}


def test_group_advantages_are_those_of_verl_and_padding_is_in_no_group():
    """Registered under a name; by its own choice another rule."""
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, get_adv_estimator_fn

    import creditd.adapters.verl_plugin  # noqa: F401 - registers

    given = tensors([1.0, 0.0, 0.5, 2.0, 9.0], list("aabba"))
    estimate = get_adv_estimator_fn("creditd_group")
    found, returns = estimate(**given, config={}, non_tensor_batch=None, batch=None)
    four = {name: value[:4] for name, value in given.items()}
    expected, _ = compute_grpo_outcome_advantage(**four)
    np.testing.assert_allclose(found[:4], expected, atol=1e-6)
    assert found[4].tolist() == [0.0] * 3
    assert returns is found
    other, _ = estimate(**given, config={"creditd": {"advantage": "rloo"}})
    assert other[0].tolist() == pytest.approx([1.0] * 3)


def test_group_advantages_take_their_choices_from_the_configuration():
    """In verl's own way to an estimator, with a padding row behind the batch."""
    from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size

    made = trainer(configured("algorithm.adv_estimator=creditd_group", "+algorithm.creditd.advantage=rloo"))
    put(rewards={"a_0_0": 1.0, "a_1_0": 0.0, "b_0_0": 0.5, "b_1_0": 0.5})
    meta, _ = sampled(made)
    found = advantages(made, upsample_batch_to_divisible_size(meta, 5, 1))
    assert [found[key] for key in IDS] == [[1.0] * 4, [-1.0] * 5, [0.0] * 2, [0.0] * 6]
    assert [row for key, row in found.items() if key not in IDS] == [[0.0]]


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


@pytest.mark.parametrize("name", ["creditd_shapley", "creditd_scar", "creditd_oar"])
def test_an_estimator_without_its_sampler_says_what_to_configure(name):
    """And computes nothing."""
    made = trainer(configured(f"algorithm.adv_estimator={name}"))
    put()
    meta, _ = sampled(made)
    with pytest.raises(
        RuntimeError, match=f"{name} has no advantages without the sampler.*pkg://creditd.adapters.verl"
    ):
        made._compute_advantage(meta, {})


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


def test_token_rewards_need_an_estimator_that_keeps_them():
    """GRPO adds them up."""
    with pytest.raises(ValueError, match="would add the rewards of tokens up"):
        trainer(configured(*with_credit("grpo", **spans(kind="span_rewards"))))


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
        "creditd.adapters.verl_estimators",
        "creditd.adapters.verl_plugin",
        "creditd.adapters.verl_seams",
    }
