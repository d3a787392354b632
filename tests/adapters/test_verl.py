"""The configuration of verl, its queue, sampler, advantages and loss, with creditd's sampler in place of its own."""

from pathlib import Path

import pytest

pytest.importorskip("transfer_queue", reason="the lane `trainer` installs verl into an environment of its own")
pytest.importorskip("verl", reason="the lane `trainer` installs verl into an environment of its own")

from adapters import verl_batches as own
from adapters.verl_batches import IDS, advantages, configured, of_candidates, put, sampled, trainer, with_credit
from conventions.groups import OF_A_LIBRARY
from creditd.client import Client, CreditdError, TransportError

pytestmark = [
    *OF_A_LIBRARY,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("verl_queue"),
]

NOBODY = "'http://127.0.0.1:9'"
REWARDS = [[0.25, 1.0], [0.5, 0.5, 0.25], [1.0], [0.25, 0.25, 0.5]]
SPANS = [[(0, 1), (2, 3)], [(0, 1), (2, 3), (4, 5)], [(0, 1)], [(0, 1), (2, 3), (4, 5)]]
UTILITIES = [[1.0, 0.5], [1.0, 0.5]]


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


def test_a_row_begins_inside_its_thinking_by_its_own_prompt():
    """The prompts of one group end with the opening of it: nothing of its responses is a candidate."""
    made = trainer(configured(*with_credit(**of_candidates())))
    names = list(IDS)
    put({name: IDS[name] for name in names[:2]}, prompt=(2, 3))
    put({name: IDS[name] for name in names[2:]}, prompt=(2, 3, 2, 6))
    meta, metrics = sampled(made)
    assert metrics["credit/malformed"] == 0.5
    found = advantages(made, meta)
    assert all(any(found[name]) for name in names[:2])
    assert not any(any(found[name]) for name in names[2:])


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
