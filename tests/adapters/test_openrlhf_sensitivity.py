"""OAR in OpenRLHF's own maker, trainer and loss: its advantages, times the weights that a service answers."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openrlhf", reason="the lane `trainer` installs OpenRLHF into an environment of its own")

from conventions.groups import OF_A_LIBRARY

pytestmark = OF_A_LIBRARY

import ray  # noqa: E402

from adapters import openrlhf_world as world  # noqa: E402
from adapters import tiny  # noqa: E402
from adapters.openrlhf_world import GROUPS, MARK, REASONED, REMOTE, SENSITIVITY, by_rows, gradients  # noqa: E402
from creditd.client import CreditdError, TransportError  # noqa: E402
from creditd.client.exchanges import answer_of, parsed  # noqa: E402
from services import running_service  # noqa: E402

SERVICE = Path(__file__).with_name("policy_service.py")
NOBODY = ["--credit.url", "http://127.0.0.1:9", "--credit.deadline_s", "0.2"]
REWARDS = [1.0, 0.0, 0.25, 0.25, 0.0, 2.0]
EQUAL = [1.0, 1.0, 1.0, 0.25, 0.0, 2.0]
HOLES = {1: (2, 4), 5: (1,)}
OTHER_ESTIMATORS = ["dr_grpo", "rloo", "reinforce_baseline", "reinforce", "flash_reinforce"]


@pytest.fixture(scope="module", autouse=True)
def ray_here():
    """OpenRLHF gathers what its models say by Ray."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A service with a policy whose sensitivities are known, and one that fails."""
    python = os.environ.get("SERVICE_PYTHON")
    if python is None:
        pytest.skip("SERVICE_PYTHON names no interpreter that can run the service")
    with running_service(directory=tmp_path_factory.mktemp("service"), script=SERVICE, python=python) as url:
        yield ["--credit.url", url]


def samples(rewards=REWARDS, **options):
    """A batch whose answers stand behind a mark."""
    return world.samples(tiny.tokenizer([MARK]), rewards=rewards, texts=REASONED, **options)


def stepped(*arguments, batch=None, step=0, **models):
    """A trainer after one step, and the log of it."""
    trainer = world.trainer_of(*SENSITIVITY, *REMOTE, *arguments, more=[MARK], **models)
    status, _ = trainer.train_step(samples() if batch is None else batch, step)
    return trainer, status


def plain(*arguments, batch=None, **models):
    """Advantages that OpenRLHF gives by itself, 0 on tokens that the policy did not write."""
    trainer = world.trainer_with(None, world.arguments_of([*arguments, *REMOTE, *world.THEIRS]), more=[MARK], **models)
    trainer.train_step(samples() if batch is None else batch, 0)
    for experience in trainer.seen:
        experience.advantages = experience.advantages * experience.action_mask
    return by_rows(trainer.seen)


def kept(directory):
    """The arguments that keep what is on the wire."""
    return ["--credit.record", str(directory)]


def on_the_wire(directory):
    """The answer of the only request there was."""
    (exchange,) = directory.iterdir()
    return answer_of(parsed(exchange.read_bytes()))


def spread(rows):
    """Rows as float32, as lists."""
    return [np.asarray(row, dtype=np.float32).tolist() for row in rows]


def test_the_gradient_of_each_token_is_its_advantage_times_its_weight(tmp_path, served):
    """Through OpenRLHF's experiences, its buffer and its loss: to the last bit what the service answered."""
    trainer, status = stepped(*served, *kept(tmp_path / "wire"), *GROUPS)
    answer, base = on_the_wire(tmp_path / "wire"), plain(*GROUPS)
    batches, indices = world.shuffled(trainer.seen, [4, 1, 0, 5, 2, 3], 4)
    found = {}
    for batch, gradient, rows in zip(batches, gradients(batches), indices, strict=True):
        for own, values, index in zip(batch.action_mask.bool(), gradient, rows, strict=True):
            found[index] = values[own].tolist()
            assert not values[~own].any()
    assert [found[index] for index in sorted(found)] == spread(answer.token_advantages)
    for index, (own, weights) in enumerate(zip(base, answer.weights, strict=True)):
        assert found[index] == pytest.approx((np.array(own) * weights).tolist(), rel=1e-6)
    assert len(set(found[0][:3])) > 1
    assert answer.has_flag("answer_not_found").tolist() == [False, False, True, False, False, False]
    assert (status["credit/errors"], status["credit/fallbacks"], status["credit/without_contrast"]) == (0.0, 0.0, 0.0)


def test_the_log_has_every_number_of_the_page(served):
    """Those of OAR.md, beside OpenRLHF's own; rewards are OpenRLHF's."""
    trainer, status = stepped(*served, *GROUPS)
    names = ("effective_share", "top_share", "answer_not_found", "flat", "reweighted", "seconds", "model_seconds")
    more = ("tokens_computed", "without_contrast", "fallbacks", "errors")
    assert {f"credit/{name}" for name in (*names, *more)} <= status.keys()
    assert [value for one in trainer.seen for value in one.info["reward"].tolist()] == REWARDS
    assert by_rows(trainer.seen, "returns") == by_rows(trainer.seen)
    for experience in trainer.seen:
        items = world.experiences.split_experience_batch(experience)
        assert len(items) == len(experience.action_mask)


@pytest.mark.parametrize("estimator", OTHER_ESTIMATORS)
def test_every_estimator_without_a_critic_is_multiplied_as_it_is(tmp_path, served, estimator):
    """Behind its baseline, its deviation and its whitening; the sum over a completion stays what it was."""
    settings = ["--algo.advantage.estimator", estimator, *world.WITH_LOSS]
    trainer, _ = stepped(*served, *kept(tmp_path), *settings)
    base, weights = plain(*settings), on_the_wire(tmp_path).weights
    for found, own, weight in zip(by_rows(trainer.seen), base, weights, strict=True):
        assert found == pytest.approx((np.array(own) * weight).tolist(), rel=1e-6)
        assert sum(found) == pytest.approx(sum(own), rel=1e-5)


def test_one_response_for_each_prompt_is_taken(tmp_path, served):
    """By an estimator that compares responses of a whole batch; groups have one row each."""
    settings = ["--algo.advantage.estimator", "reinforce", *world.WITH_LOSS]
    trainer = world.trainer_of(*SENSITIVITY, *REMOTE, *served, *kept(tmp_path), *settings, more=[MARK])
    trainer.args.rollout.n_samples_per_prompt = 1
    trainer.train_step(samples(), 0)
    assert spread(on_the_wire(tmp_path).token_advantages) == by_rows(trainer.seen)


def test_a_penalty_in_the_rewards_is_multiplied_with_them(tmp_path, served):
    """Advantages differ from token to token then, and each is multiplied by the weight of its own."""
    settings = ["--algo.advantage.estimator", "group_norm", "--algo.kl.init_coef", "0.5"]
    trainer, _ = stepped(*served, *kept(tmp_path), *settings, reference=world.Group(-0.25))
    base, weights = plain(*settings, reference=world.Group(-0.25)), on_the_wire(tmp_path).weights
    assert all(len(set(row)) > 1 for row in base)
    for found, own, weight in zip(by_rows(trainer.seen), base, weights, strict=True):
        assert found == pytest.approx((np.array(own) * weight).tolist(), rel=1e-6)


def test_penalties_and_bounds_of_openrlhf_act_before(tmp_path, served):
    """They change its rewards, of which the advantages are made."""
    more = ["--reward.overlong_buffer_len", "4", "--reward.clip_range", "-0.5", "0.5"]
    more += ["--reward.stop_properly_penalty_coef", "0.5", "--rollout.max_new_tokens", "8"]
    trainer, _ = stepped(*served, *kept(tmp_path), *GROUPS, *more, batch=samples(truncated=(3,)))
    base, weights = plain(*GROUPS, *more, batch=samples(truncated=(3,))), on_the_wire(tmp_path).weights
    assert base != plain(*GROUPS)
    for found, own, weight in zip(by_rows(trainer.seen), base, weights, strict=True):
        assert found == pytest.approx((np.array(own) * weight).tolist(), rel=1e-6)


def test_tokens_of_others_get_exactly_nothing_and_are_not_measured(tmp_path, served):
    """Turns of an environment inside a completion."""
    trainer, _ = stepped(*served, *kept(tmp_path), *GROUPS, batch=samples(holes=HOLES))
    found, answer = by_rows(trainer.seen), on_the_wire(tmp_path)
    for row, holes in HOLES.items():
        assert [found[row][hole] for hole in holes] == [0.0] * len(holes)
        assert [answer.weights[row][hole] for hole in holes] == [0.0] * len(holes)
    for experience in trainer.seen:
        assert not experience.advantages[~experience.action_mask.bool()].any()
    assert found == spread(answer.token_advantages)


def test_a_completion_without_a_token_of_the_policy_gets_nothing(served):
    """OpenRLHF may bring one; its group is still whole."""
    tokenizer = tiny.tokenizer([MARK])
    batch = world.samples(tokenizer, rewards=REWARDS, texts=[["", *REASONED[0][1:]], REASONED[1]])
    trainer, _ = stepped(*served, *GROUPS, batch=batch)
    found = by_rows(trainer.seen)
    assert found[0] == []
    assert any(found[1])


def test_prompts_and_rewards_stay_with_their_rows(tmp_path, served):
    """Micro-batches of two hold rows of two groups; the request has them in the order of generation."""
    trainer, _ = stepped(*served, *kept(tmp_path), *GROUPS)
    (exchange,) = tmp_path.iterdir()
    items = json.loads(parsed(exchange.read_bytes()).request)["items"]
    tokenizer = tiny.tokenizer([MARK])
    texts = [text for group in REASONED for text in group]
    ids = [tokenizer(text=text, add_special_tokens=False)["input_ids"] for text in texts]
    prompts = [tokenizer(text=prompt, add_special_tokens=False)["input_ids"] for prompt in world.PROMPTS]
    assert [item["completion_ids"] for item in items] == ids
    assert [item["prompt_ids"] for item in items] == [row for row in prompts for _ in range(3)]
    assert [len(one.index) for one in trainer.seen] == [2, 2, 2]


def test_dynamic_batches_have_the_same_numbers(served):
    """OpenRLHF sorts by length."""
    expected, _ = stepped(*served, *GROUPS)
    trainer = world.trainer_of(
        *SENSITIVITY, *REMOTE, *served, *GROUPS, "--train.dynamic_batch_enable", "--train.max_tokens_per_gpu", "16",
        more=[MARK],
    )  # fmt: skip
    trainer.args.rollout.max_tokens_per_gpu = 16
    trainer.train_step(samples(), 0)
    found = []
    for experience in trainer.seen:
        pairs = zip(experience.advantages, experience.action_mask.bool(), strict=True)
        found += [advantages[own].tolist() for advantages, own in pairs]
    assert sorted(found) == sorted(by_rows(expected.seen))


def test_rows_without_contrast_are_not_measured(tmp_path, served):
    """A group with equal rewards has advantages of 0; the others are measured."""
    trainer, status = stepped(*served, *kept(tmp_path), *GROUPS, batch=samples(EQUAL))
    answer = on_the_wire(tmp_path)
    assert answer.n_reweighted[:3].tolist() == [0, 0, 0]
    assert not np.concatenate(by_rows(trainer.seen)[:3]).any()
    assert any(by_rows(trainer.seen)[3])
    assert status["credit/without_contrast"] == 0.5


def test_without_any_contrast_nobody_is_asked():
    """Not even whether the service is there."""
    trainer, status = stepped(*NOBODY, *GROUPS, batch=samples([1.0] * 6))
    assert not np.concatenate(by_rows(trainer.seen)).any()
    assert (status["credit/errors"], status["credit/without_contrast"]) == (0.0, 1.0)


def test_a_dead_service_is_raised_by_default():
    """Nothing is made up."""
    with pytest.raises(TransportError):
        stepped(*NOBODY, *GROUPS)


def test_a_dead_service_leaves_the_advantages_of_openrlhf():
    """Under `group_reward`, and counted."""
    trainer, status = stepped(*NOBODY, "--credit.on_failure", "group_reward", *GROUPS, batch=samples(holes=HOLES))
    assert by_rows(trainer.seen) == spread(plain(*GROUPS, batch=samples(holes=HOLES)))
    assert (status["credit/errors"], status["credit/fallbacks"]) == (1.0, 1.0)


def test_a_policy_that_fails_is_a_failure_and_one_that_is_not_there_an_error(served):
    """The latter under every policy, because it is the configuration's fault."""
    broken, nobody = (["--credit.model", name, "--credit.on_failure", "group_reward"] for name in ("broken", "nobody"))
    trainer, status = stepped(*served, *broken, "--credit.deadline_s", "1", *GROUPS)
    assert by_rows(trainer.seen) == spread(plain(*GROUPS))
    assert status["credit/fallbacks"] == 1.0
    with pytest.raises(CreditdError, match="unknown_model"):
        stepped(*served, *nobody, *GROUPS)


def test_a_version_that_is_pinned_answers_or_nobody(served):
    """The step in it is the one after which the weights that wrote the batch were left."""
    pinned = ["--credit.weight_version", "run:{step}"]
    with pytest.raises(CreditdError, match=r"weight_version_unknown"):
        stepped(*served, *pinned, *GROUPS, step=4)
    _, status = stepped(*served, "--credit.weight_version", "v0", *GROUPS)
    assert "credit/pushes" not in status


@pytest.mark.parametrize("missing", [[3], [0, 1, 2, 3, 4, 5]])
def test_a_reward_that_did_not_come_is_an_error(missing):
    """Advantages of its group, or of the whole batch, would be made of it."""
    rewards = [None if row in missing else value for row, value in enumerate(REWARDS)]
    with pytest.raises(ValueError, match=f"got no reward of completion {missing[0]} from OpenRLHF's own source"):
        stepped(*NOBODY, *GROUPS, batch=samples(rewards))


def test_a_reward_model_of_openrlhf_is_a_source(tmp_path, served):
    """It scores before advantages are computed."""
    batch = samples()
    for one in batch:
        one.rewards, one.scores = None, None
        del one.info["reward"], one.info["score"]
    arguments = [*SENSITIVITY, *served, *kept(tmp_path), *GROUPS, "--reward.model_name_or_path", "nobody/rm"]
    trainer = world.trainer_of(*arguments, judge=world.Group(0.5), more=[MARK])
    trainer.train_step(batch, 0)
    assert by_rows(trainer.seen) == spread(on_the_wire(tmp_path).token_advantages)


def test_advantages_that_are_no_numbers_are_an_error():
    """No weight makes a number of them."""
    with pytest.raises(ValueError, match="not finite"):
        stepped(*NOBODY, *GROUPS, batch=samples([float("inf"), *REWARDS[1:]]))
