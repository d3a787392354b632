"""Credit in OpenRLHF's own experience maker, trainer and loss: what is trained on, what is logged, what is refused."""

import json
import math
import os

import numpy as np
import pytest

pytest.importorskip("openrlhf", reason="the lane `trainer` installs OpenRLHF into an environment of its own")

from conventions.groups import OF_A_LIBRARY

pytestmark = OF_A_LIBRARY

import ray  # noqa: E402
import torch  # noqa: E402

from adapters import openrlhf_rewards, tiny  # noqa: E402
from adapters import openrlhf_world as world  # noqa: E402
from adapters.openrlhf_world import CANDIDATES, GAE, GROUPS, LOCAL, REMOTE, SPANS, by_rows, gradients, samples  # noqa: E402
from creditd.adapters.loop import CandidateReward, CreditConfig, LoopCredit, SpanReward, span_token_rewards  # noqa: E402
from creditd.client import Client, TransportError  # noqa: E402
from creditd.client.exchanges import answer_of, parsed  # noqa: E402
from services import running_service  # noqa: E402

NOBODY = ["--credit.url", "http://127.0.0.1:9", "--credit.deadline_s", "0.2"]
SINGLE = 1e-6
"""Advantages are float32 there."""


@pytest.fixture(scope="module", autouse=True)
def ray_here():
    """OpenRLHF gathers what its models say by Ray."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    yield
    ray.shutdown()


def stepped(trainer, batch, step=0):
    """One step, and the log of it."""
    status, _ = trainer.train_step(batch, step)
    return status


def spread(rows):
    """Rows as float32, as lists."""
    return [np.asarray(row, dtype=np.float32).tolist() for row in rows]


def of_loop(reward=None, *, masks=None, others=None, step=0, texts=world.TEXTS, **config):
    """The same from the adapter for loops written by hand."""
    tokenizer = tiny.tokenizer()
    ids = [tokenizer(text=text, add_special_tokens=False)["input_ids"] for group in texts for text in group]
    reward = reward or CandidateReward(openrlhf_rewards.score, tiny.PARSER)
    credit = LoopCredit(reward, CreditConfig(**{"url": "local:"} | config), tokenizer=tokenizer, longest=1)
    return credit.advantages(
        [prompt for prompt in world.PROMPTS for _ in range(world.GROUP_SIZE)],
        ids,
        group_size=world.GROUP_SIZE,
        step=step,
        completion_masks=masks,
        other_rewards=others,
        columns={"labels": ["l"] * len(ids)},
    )


def test_the_gradient_of_each_token_is_the_advantage_on_the_wire(tmp_path):
    """Through a service, OpenRLHF's experiences, its buffer and its loss: to the last bit what the service answered."""
    python = os.environ.get("SERVICE_PYTHON")
    if python is None:
        pytest.skip("SERVICE_PYTHON names no interpreter that can run the service")
    with running_service(directory=tmp_path, python=python) as url:
        kept = tmp_path / "kept"
        trainer = world.trainer_of(*CANDIDATES, "--credit.url", url, "--credit.record", str(kept), *GROUPS)
        stepped(trainer, samples(tiny.tokenizer()))
    (exchange,) = kept.iterdir()
    on_the_wire = answer_of(parsed(exchange.read_bytes())).token_advantages
    batches, indices = world.shuffled(trainer.seen, [4, 1, 0, 5, 2, 3], 4)
    found = {}
    for batch, gradient, rows in zip(batches, gradients(batches), indices, strict=True):
        for own, values, index in zip(batch.action_mask.bool(), gradient, rows, strict=True):
            found[index] = values[own].tolist()
            assert not values[~own].any()
    assert [found[index] for index in sorted(found)] == spread(on_the_wire)
    assert any(len(set(row)) > 1 for row in found.values())


def test_advantages_are_those_of_the_loop_written_by_hand():
    """Ragged rows, split into batches of two across a group's border."""
    trainer = world.trainer_of(*CANDIDATES, *LOCAL, *GROUPS)
    status = stepped(trainer, samples(tiny.tokenizer()))
    expected = of_loop()
    assert by_rows(trainer.seen) == spread(expected.token_advantages)
    assert by_rows(trainer.seen, "returns") == by_rows(trainer.seen)
    rewards = [value for one in trainer.seen for value in one.info["reward"].tolist()]
    assert rewards == expected.rewards
    assert status["rollout/reward_mean"] == pytest.approx(np.mean(expected.rewards))
    assert status["generated_samples"][1] == expected.rewards[0]
    assert expected.metrics.keys() <= status.keys()


def test_nothing_is_left_that_the_log_cannot_take():
    """Each entry of `info` has one number per completion, which is what OpenRLHF makes one tensor of."""
    trainer = world.trainer_of(*CANDIDATES, *LOCAL, *GROUPS)
    stepped(trainer, samples(tiny.tokenizer()))
    for experience in trainer.seen:
        items = world.experiences.split_experience_batch(experience)
        again = world.experiences.make_experience_batch(items)
        for name, value in again.info.items():
            made = torch.tensor(value, dtype=torch.float)
            assert made.shape == (len(items),), name


def test_dynamic_batches_are_put_back_in_order():
    """OpenRLHF sorts by length; groups are whole all the same, and each row has its own advantages."""
    more = ("--train.dynamic_batch_enable", "--train.max_tokens_per_gpu", "16")
    trainer = world.trainer_of(*CANDIDATES, *LOCAL, *GROUPS, *more)
    trainer.args.rollout.max_tokens_per_gpu = 16
    seen = []
    maker = trainer.experience_maker
    inner = maker.make_experience_batch
    maker.make_experience_batch = lambda batch: seen.extend(inner(batch)) or seen[:]
    stepped(trainer, samples(tiny.tokenizer()))
    indices = [index for one in seen for index in (one.index or [])]
    assert len(trainer.seen) >= 1
    assert indices == []  # OpenRLHF took them when it balanced its batches
    expected = spread(of_loop().token_advantages)
    found = []
    for experience in trainer.seen:
        pairs = zip(experience.advantages, experience.action_mask.bool(), strict=True)
        found += [advantages[own].tolist() for advantages, own in pairs]
    assert sorted(found) == sorted(expected)


HOLES = {1: (2, 3), 5: (1,)}


def test_tokens_of_others_get_exactly_nothing():
    """Turns of an environment inside a completion: no candidates there, and no advantage."""
    trainer = world.trainer_of(*CANDIDATES, "--credit.turns", "all", *LOCAL, *GROUPS)
    stepped(trainer, samples(tiny.tokenizer(), holes=HOLES))
    lengths = [len(text.split()) for group in world.TEXTS for text in group]
    masks = [[int(at not in HOLES.get(row, ())) for at in range(length)] for row, length in enumerate(lengths)]
    expected = of_loop(CandidateReward(openrlhf_rewards.score, tiny.PARSER, turns="all"), masks=masks)
    found = by_rows(trainer.seen)
    assert found == spread(expected.token_advantages)
    assert [found[1][2], found[1][3], found[5][1]] == [0.0] * 3
    for experience in trainer.seen:
        assert not experience.advantages[~experience.action_mask.bool()].any()


def test_a_completion_without_a_token_of_the_policy_gets_nothing():
    """OpenRLHF may bring one; its group is still whole."""
    trainer = world.trainer_of(*CANDIDATES, *LOCAL, *GROUPS)
    stepped(trainer, samples(tiny.tokenizer(), texts=[["", *world.TEXTS[0][1:]], world.TEXTS[1]]))
    found = by_rows(trainer.seen)
    assert found[0] == []
    assert any(found[1])


CUT_OFF = [["one ; two", "three ; three ; one <eos>", "four <eos>"], world.TEXTS[1]]
AGENT = ["--train.agent_func_path", "agent.py"]


@pytest.mark.parametrize("more", [[], AGENT, ["--rollout.max_new_tokens", "3"]])
@pytest.mark.parametrize(("truncated", "first"), [((), 1.0), ((0,), 0.25)])
def test_an_open_candidate_of_a_completion_that_was_cut_off_is_none(more, truncated, first):
    """What was cut off is what OpenRLHF says was, or an agent: lengths and end tokens say nothing."""
    trainer = world.trainer_of(*CANDIDATES, *LOCAL, *GROUPS, *more)
    stepped(trainer, samples(tiny.tokenizer(), texts=CUT_OFF, truncated=truncated))
    assert trainer.seen[0].info["reward"][0] == first


def test_a_completion_begins_inside_its_thinking_by_its_own_prompt(monkeypatch):
    """The last token of the prompt opens it in one group: nothing of its completions is a candidate."""
    words = ["<think>", "</think>"]
    monkeypatch.setattr(world, "PROMPTS", ["ask one", "ask two <think>"])
    trainer = world.trainer_of(*CANDIDATES, *LOCAL, *GROUPS, more=words)
    status = stepped(trainer, samples(tiny.tokenizer(words)))
    assert status["credit/malformed"] == 0.5
    found = by_rows(trainer.seen)
    assert all(any(row) for row in found[:3])
    assert not any(any(row) for row in found[3:])


def test_labels_reach_the_function_and_an_unknown_reward_is_no_number():
    """A completion that nobody can score is NaN in the log, has the advantage 0, and the others are compared."""
    openrlhf_rewards.SEEN.clear()
    trainer = world.trainer_of(*CANDIDATES, "--credit.on_failure", "mask", *LOCAL, *GROUPS)
    batch = samples(tiny.tokenizer(), texts=[["six <eos>", *world.TEXTS[0][1:]], world.TEXTS[1]])
    status = stepped(trainer, batch)
    found = by_rows(trainer.seen)
    assert openrlhf_rewards.SEEN[-1] == ["l"] * 6
    assert all(set(row) == {0.0} for row in found[:3])
    assert any(found[3])
    assert math.isnan(trainer.seen[0].info["reward"][0])
    assert status["credit/fallbacks"] == 0.5


OTHERS = [1.0, 0.0, 0.5, 0.25, 0.0, 2.0]


def test_rewards_of_openrlhf_count_beside():
    """As those of other reward functions do in TRL; the log has both."""
    trainer = world.trainer_of(*CANDIDATES, *LOCAL, *GROUPS, *REMOTE)
    status = stepped(trainer, samples(tiny.tokenizer(), rewards=OTHERS))
    expected = of_loop(others=OTHERS)
    assert by_rows(trainer.seen) == spread(expected.token_advantages)
    assert [value for one in trainer.seen for value in one.info["other_reward"].tolist()] == OTHERS
    assert [value for one in trainer.seen for value in one.info["reward"].tolist()] == expected.rewards
    assert status["credit/missing_rewards"] == 0.0


@pytest.mark.parametrize("missing", [[0], [3], [0, 1, 2, 3, 4, 5]])
def test_a_reward_that_did_not_come_takes_no_other_with_it(missing):
    """OpenRLHF swallows what its reward server did, and drops the rewards of samples beside it; here it is counted."""
    rewards = [None if row in missing else value for row, value in enumerate(OTHERS)]
    trainer = world.trainer_of(*CANDIDATES, *LOCAL, *GROUPS, *REMOTE)
    status = stepped(trainer, samples(tiny.tokenizer(), rewards=rewards))
    assert by_rows(trainer.seen) == spread(of_loop(others=rewards).token_advantages)
    others = [value for one in trainer.seen for value in one.info["other_reward"].tolist()]
    assert [math.isnan(value) for value in others] == [row in missing for row in range(6)]
    assert status["credit/missing_rewards"] == len(missing) / 6
    for experience in trainer.seen:
        world.experiences.split_experience_batch(experience)  # as many of each as there are samples


def test_a_reward_model_of_openrlhf_counts_beside():
    """It scores while experiences are made, after generation, and before credit is asked for."""
    judge = world.Group(0.5)
    more = ["--reward.model_name_or_path", "nobody/rm"]
    trainer = world.trainer_of(*CANDIDATES, *LOCAL, *GROUPS, *more, judge=judge)
    batch = samples(tiny.tokenizer())
    for one in batch:
        one.rewards, one.scores = None, None
        del one.info["reward"], one.info["score"]
    others = [0.5 * float((one.sequences % 5).sum()) for one in batch]
    status = stepped(trainer, batch)
    assert by_rows(trainer.seen) == spread(of_loop(others=others).token_advantages)
    assert [value for one in trainer.seen for value in one.info["other_reward"].tolist()] == others
    assert status["credit/missing_rewards"] == 0.0


def test_token_rewards_from_a_reward_server_are_refused():
    """OpenRLHF would take numbers of other tokens for rewards, and say nothing."""
    trainer = world.trainer_of(*CANDIDATES, *LOCAL, *GROUPS, *REMOTE)
    with pytest.raises(ValueError, match="one number for each"):
        stepped(trainer, samples(tiny.tokenizer(), rewards=[[0.5, 1.0]] * 6))


@pytest.mark.parametrize("batch", [slice(0, 5), [0, 1, 3, 2, 4, 5]])
def test_a_split_group_is_an_error(batch):
    """Too few completions, or those of two prompts in one block."""
    everything = samples(tiny.tokenizer())
    given = everything[batch] if isinstance(batch, slice) else [everything[row] for row in batch]
    trainer = world.trainer_of(*CANDIDATES, *LOCAL, *GROUPS)
    with pytest.raises(ValueError, match="group"):
        stepped(trainer, given)


def test_a_dead_service_is_raised_by_default():
    """Nothing is made up."""
    trainer = world.trainer_of(*CANDIDATES, *NOBODY, *GROUPS)
    with pytest.raises(TransportError):
        stepped(trainer, samples(tiny.tokenizer()))


@pytest.mark.parametrize("policy", ["mask", "group_reward", "local"])
def test_a_dead_service_leaves_what_the_policy_says(policy):
    """Nothing, the plain advantage of whole responses, or credit of this process; each is counted in OpenRLHF's log."""
    trainer = world.trainer_of(*CANDIDATES, *NOBODY, "--credit.on_failure", policy, *GROUPS)
    status = stepped(trainer, samples(tiny.tokenizer()))
    found = by_rows(trainer.seen)
    if policy == "local":
        assert found == spread(of_loop().token_advantages)
    elif policy == "mask":
        assert not np.concatenate(found).any()
    else:
        with Client("local:") as client:
            rewards = of_loop().rewards
            plain = client.group([rewards[:3], rewards[3:]], advantage="grpo").advantages
        firsts = [row[0] for row in found]
        assert firsts == pytest.approx(np.concatenate(list(plain)).tolist(), abs=SINGLE)
        assert all(len(set(row)) == 1 for row in found)
    assert status["credit/errors"] == 1.0
    assert (status["credit/local"], status["credit/fallbacks"]) == ((1.0, 0.0) if policy == "local" else (0.0, 1.0))


def test_schedules_follow_the_step_of_the_trainer():
    """A function by its name, and the way from one rule to another."""
    named = world.trainer_of(*CANDIDATES, "--credit.credit", "adapters.openrlhf_rewards:rule_at", *LOCAL, *GROUPS)
    for step in (4, 5):
        stepped(named, samples(tiny.tokenizer()), step)
        expected = of_loop(credit=openrlhf_rewards.rule_at, step=step)
        assert by_rows(named.seen[-3:]) == spread(expected.token_advantages)
    way = json.dumps({"type": "anneal", "start": "set_reward", "end": "shapley", "steps": 8})
    annealed = world.trainer_of(*CANDIDATES, "--credit.credit", way, *LOCAL, *GROUPS)
    assert stepped(annealed, samples(tiny.tokenizer()), 2)["credit/position"] == 0.25


def test_spans_have_the_advantages_of_the_loop_written_by_hand():
    """SCAR in the form of GRPO; the reward is that of the whole completion."""
    trainer = world.trainer_of(*SPANS, "--credit.segmentation", "token", "--credit.alpha", "0.5", *LOCAL, *GROUPS)
    stepped(trainer, samples(tiny.tokenizer()))
    expected = of_loop(SpanReward(openrlhf_rewards.judge, segmentation="token", alpha=0.5))
    assert by_rows(trainer.seen) == spread(expected.token_advantages)
    assert [value for one in trainer.seen for value in one.info["reward"].tolist()] == expected.rewards


def kl_of(mask, ids):
    """What the made-up models differ by: half and a quarter of one and the same number."""
    return -0.25 * mask * (1 + ids[:, 1:] % 3)


def test_a_penalty_in_the_rewards_is_added_as_openrlhf_has_it():
    """The advantage is creditd's less coefficient times the KL terms from the token on, 0 where nobody wrote."""
    settings = ["--algo.advantage.estimator", "group_norm", "--algo.kl.init_coef", "0.5"]
    keep = ["--credit.kl_in_reward", "keep", "--credit.turns", "all"]
    trainer = world.trainer_of(*CANDIDATES, *LOCAL, *settings, *keep, reference=world.Group(-0.25))
    stepped(trainer, samples(tiny.tokenizer(), holes=HOLES))
    plain = world.trainer_of(*CANDIDATES, "--credit.turns", "all", *LOCAL, *GROUPS)
    stepped(plain, samples(tiny.tokenizer(), holes=HOLES))
    for with_kl, without in zip(trainer.seen, plain.seen, strict=True):
        mask = with_kl.action_mask
        terms = kl_of(mask, with_kl.sequences) * mask
        ahead = terms.flip(1).cumsum(1).flip(1) * mask
        torch.testing.assert_close(with_kl.advantages, without.advantages - 0.5 * ahead)
        assert not with_kl.advantages[~mask.bool()].any()


def test_a_critic_sees_rewards_of_tokens():
    """With `gae` they are added before OpenRLHF computes advantages and returns, its KL terms and rewards beside."""
    critic = world.Group(0.25)
    more = ["--credit.credit", "prefix", "--credit.alpha", "0.75", "--algo.kl.init_coef", "0.5", *REMOTE]
    trainer = world.trainer_of(*SPANS, *LOCAL, *GAE, *more, reference=world.Group(-0.25), critic=critic)
    status = stepped(trainer, samples(tiny.tokenizer(), rewards=OTHERS))
    tokenizer = tiny.tokenizer()
    ids = [tokenizer(text=text, add_special_tokens=False)["input_ids"] for group in world.TEXTS for text in group]
    prompts = [prompt for prompt in world.PROMPTS for _ in range(3)]

    def decode(tokens):
        return tokenizer.decode([one for one in tokens if one > 1], clean_up_tokenization_spaces=False)

    with Client("local:") as client:
        expected = span_token_rewards(
            client, prompts, ids, decode, credit="prefix", alpha=0.75,
            utility=lambda prompt, text: openrlhf_rewards.judge([prompt], [text])[0],
        )  # fmt: skip
    maker = trainer.experience_maker
    raw = []
    for experience in trainer.seen:
        mask = experience.action_mask
        rewards = -0.5 * kl_of(mask, experience.sequences) * mask
        for row, index in enumerate(experience.index):
            own = mask[row].nonzero().reshape(-1)
            rewards[row, own] += torch.tensor(expected.token_rewards[index], dtype=torch.float32)
            rewards[row, own[-1]] += OTHERS[index]
        values = 0.25 * mask * (1 + experience.sequences[:, 1:] % 3)
        advantages, returns = world.maker_kind.get_advantages_and_returns(maker, values, rewards, mask, 1.0, 1.0)
        torch.testing.assert_close(experience.returns, returns)
        torch.testing.assert_close(experience.info["return"], rewards.sum(dim=1))
        raw.append((experience, advantages, mask))
    own = torch.cat([advantages[mask.bool()] for _, advantages, mask in raw])
    for experience, advantages, mask in raw:
        white = (advantages - own.mean()) / own.std(unbiased=False)
        torch.testing.assert_close(experience.advantages[mask.bool()], white[mask.bool()], rtol=1e-4, atol=1e-5)
    texts = [decode(row) for row in ids]
    given = [value for one in trainer.seen for value in one.info["reward"].tolist()]
    assert given == pytest.approx(openrlhf_rewards.judge(prompts, texts))
    assert critic.appended == trainer.seen
    assert status["credit/alpha"] == 0.75
    assert {"credit/seconds", "credit/units", "credit/evaluations"} <= status.keys()
    assert [value for one in trainer.seen for value in one.info["other_reward"].tolist()] == OTHERS


def test_a_critic_does_not_learn_from_what_nobody_knows():
    """Neither from a reward that did not come, nor from a service that is away."""
    prefix = ["--credit.credit", "prefix", "--algo.kl.init_coef", "0"]
    trainer = world.trainer_of(*SPANS, *LOCAL, *GAE, *prefix, *REMOTE, critic=world.Group(0.25))
    with pytest.raises(ValueError, match="got no reward of completion 1"):
        stepped(trainer, samples(tiny.tokenizer(), rewards=[1.0, None, 0.0, 0.0, 0.0, 0.0]))
    away = world.trainer_of(*SPANS, *NOBODY, *GAE, *prefix, critic=world.Group(0.25))
    with pytest.raises(TransportError):
        stepped(away, samples(tiny.tokenizer()))


def test_a_large_share_of_the_step_is_said_once():
    """After three of them."""
    trainer = world.trainer_of(*CANDIDATES, "--credit.max_credit_share", "0", *LOCAL, *GROUPS)
    for _ in range(3):
        status = stepped(trainer, samples(tiny.tokenizer()))
    with pytest.warns(RuntimeWarning, match="credit took more than 0%"):
        status = stepped(trainer, samples(tiny.tokenizer()))
    assert 0.0 < status["credit/share_of_step"] < 1.0
