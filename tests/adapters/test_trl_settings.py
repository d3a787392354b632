"""What a trainer is refused for at its start, and what the rewards of whole responses count."""

import importlib.util

import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")

import torch
from datasets import Dataset
from trl import GRPOTrainer

from adapters.tiny import model, tokenizer
from adapters.trainers import MARKS, PARSER, PROMPTS, Watch, asked, length, score, trainer_of
from creditd.adapters.trl import CandidateReward, CreditConfig, CreditGRPOTrainer, attach

pytestmark = MARKS
HERE = CreditConfig(url="local:")


def nothing(completions, **_):
    """A reward that says the same of every response."""
    return [0.0] * len(completions)


def shape(completions, **_):
    """Another reward of the whole response."""
    return [float(len(text) % 5) for text in completions]


@pytest.mark.parametrize("loss_type", ["grpo", "sapo", "luspo"])
def test_sequence_level_importance_is_refused(loss_type, tmp_path):
    """A setting that would average the credit away is an error at the start."""
    with pytest.raises(ValueError, match="importance_sampling_level"):
        trainer_of(tmp_path, credit=HERE, loss_type=loss_type, importance_sampling_level="sequence")


def test_exactly_one_candidate_reward_is_needed(tmp_path):
    """None and two are refused."""
    for rewards in ([length], [CandidateReward(score, parser=PARSER), CandidateReward(score, parser=PARSER, name="b")]):
        with pytest.raises(ValueError, match="exactly one"):
            trainer_of(tmp_path, rewards=rewards, credit=HERE)


def test_a_candidate_reward_belongs_to_one_trainer(tmp_path):
    """A second trainer would change the first one's policies: it is refused, and the first still trains."""
    reward = CandidateReward(score, parser=PARSER)
    first = trainer_of(
        tmp_path, rewards=reward, credit=CreditConfig(url="local:", malformed={"failure_reward": -7.0}), max_steps=1
    )
    with pytest.raises(ValueError, match="score of another trainer"):
        trainer_of(tmp_path, rewards=reward, credit=HERE)
    first.train()
    assert first.state.log_history[0]["reward"] < 0


@pytest.mark.parametrize("method", ["_compute_loss", "compute_loss"])
def test_a_loss_of_its_own_is_refused(method, tmp_path):
    """A subclass that replaces the loss, or what it is given, may not take (B, T): it is refused and left as it was."""

    def own(self, *given, **named):
        return getattr(GRPOTrainer, method)(self, *given, **named)

    kind = type("OtherLoss", (GRPOTrainer,), {method: own})
    trainer = trainer_of(tmp_path, kind=kind)
    with pytest.raises(ValueError, match=f"OtherLoss has a loss of its own, {method}"):
        attach(trainer, HERE)
    assert type(trainer) is kind


@pytest.mark.parametrize("method", ["_compute_loss", "compute_loss"])
def test_a_patched_trl_is_refused(method, tmp_path, monkeypatch):
    """What puts a loss into TRL's own class, as Unsloth does, leaves no subclass by which it is seen."""

    def patched(self, model, inputs, **_):
        raise NotImplementedError

    trainer = trainer_of(tmp_path, kind=GRPOTrainer)
    monkeypatch.setattr(GRPOTrainer, method, patched)
    with pytest.raises(ValueError, match=rf"GRPOTrainer has a loss out of .*test_trl_settings, {method}; expected TRL"):
        attach(trainer, HERE)


@pytest.mark.skipif(
    importlib.util.find_spec("trl.experimental.minillm") is None, reason="MiniLLM left TRL with release 1.15"
)
def test_minillm_is_refused(tmp_path):
    """It adds its own advantages per token in the loss, where those of creditd would change their shape."""
    from trl.experimental.minillm import MiniLLMConfig, MiniLLMTrainer

    settings = MiniLLMConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", num_generations=4, disable_tqdm=True
    )
    trainer = MiniLLMTrainer(
        model=model(),
        teacher_model=model(1),
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer(),
        reward_funcs=[CandidateReward(score, parser=PARSER)],
    )
    with pytest.raises(ValueError, match="MiniLLMTrainer has a loss of its own"):
        attach(trainer, HERE)


def test_credit_is_attached_once(tmp_path):
    """A second time is refused in words."""
    trainer = trainer_of(tmp_path, credit=HERE)
    with pytest.raises(TypeError, match="has credit already"):
        attach(trainer)


@pytest.mark.parametrize(
    ("scale", "advantage", "fits"),
    [
        ("group", "pooled", True),
        ("group", "centered", True),
        ("none", "pooled", False),
        ("none", "response_preserving", False),
        ("none", {"type": "centered"}, True),
        ("none", "none", True),
        ("batch", "pooled", False),
        ("batch", "batch_scaled", True),
    ],
)
def test_a_scale_of_rewards_that_would_be_ignored_is_refused(scale, advantage, fits, tmp_path):
    """Who asks for Dr. GRPO gets no standardised credit in silence: the error names both settings."""
    options = {
        "rewards": CandidateReward(score, parser=PARSER),
        "credit": CreditConfig(url="local:", advantage=advantage),
        "scale_rewards": scale,
    }
    if fits:
        trainer_of(tmp_path, **options)
        return
    with pytest.raises(ValueError, match=rf"scale_rewards='{scale}'.*expected advantage='(centered|batch_scaled)'"):
        trainer_of(tmp_path, **options)


def test_other_rewards_are_standardised_and_nothing_else(tmp_path):
    """Settings of TRL that their advantage would not follow are refused, unless their weights are 0."""
    for setting in ({"scale_rewards": "none"}, {"scale_rewards": "batch"}):
        advantage = {"none": "centered", "batch": "batch_scaled"}[setting["scale_rewards"]]
        credit = CreditConfig(url="local:", advantage=advantage)
        with pytest.raises(ValueError, match=f"scale_rewards='{setting['scale_rewards']}' with 1 reward functions"):
            trainer_of(tmp_path, credit=credit, **setting)
        trainer_of(tmp_path, credit=credit, reward_weights=[1.0, 0.0], **setting)
    both = {"rewards": [CandidateReward(score, parser=PARSER), length, shape]}
    with pytest.raises(ValueError, match="multi_objective_aggregation='normalize_then_sum' with 2"):
        trainer_of(tmp_path, credit=HERE, multi_objective_aggregation="normalize_then_sum", **both)
    trainer_of(tmp_path, credit=HERE, multi_objective_aggregation="normalize_then_sum")


def test_weights_of_rewards_matter(tmp_path):
    """The reward of the whole response counts by its weight; the candidates' own weight can only be 1."""
    advantages = []
    for weight in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        trainer = trainer_of(tmp_path, credit=HERE, max_steps=1, reward_weights=[1.0, weight])
        watch = Watch(trainer)
        trainer.train()
        advantages.append(watch.generated[0][2])
    none, half, whole = advantages
    torch.testing.assert_close(whole - none, 2 * (half - none), rtol=1e-4, atol=1e-5)
    assert (whole != none).any()
    with pytest.raises(ValueError, match="candidate reward; expected 1"):
        trainer_of(tmp_path, credit=HERE, reward_weights=[0.0, 1.0])


@pytest.mark.parametrize(
    ("others", "weights", "expected", "weight"),
    [
        ([length], [1.0], lambda one, _: one, 1.0),
        ([length, nothing], [1.0, 1.0], lambda one, _: one, 1.0),
        ([nothing, length], [0.25, 0.5], lambda one, _: one, 0.5),
        ([length, shape], [1.0, 0.5], lambda one, two: one + two / 2, 1.0),
        ([length, shape], [0.5, -1.0], lambda one, two: one / 2 - two, 1.0),
    ],
)
def test_other_rewards_are_the_weighted_sum_of_trl(others, weights, expected, weight, tmp_path):
    """One sum with one weight goes over the wire: a function that says the same of every response changes nothing."""
    seen = []

    def watched(completions, **_):
        seen.extend(expected(one, two) for one, two in zip(length(completions), shape(completions), strict=True))
        return [0.0] * len(completions)

    trainer = trainer_of(
        tmp_path,
        rewards=[CandidateReward(score, parser=PARSER), *others, watched],
        credit=CreditConfig(url="local:", record=str(tmp_path / "wire")),
        max_steps=1,
        reward_weights=[1.0, *weights, 0.0],
    )
    trainer.train()
    (body,) = asked(tmp_path / "wire")
    assert body["columns"]["set_rewards"] == pytest.approx(seen, abs=1e-6)
    assert body["tokens"]["set_reward_weight"] == weight


def test_the_configuration_is_optional(tmp_path, monkeypatch):
    """Without one, the address is that of CREDITD_URL, or this machine."""
    monkeypatch.setenv("CREDITD_URL", "http://credit.example:8400")
    assert trainer_of(tmp_path)._creditor.client.base_url == "http://credit.example:8400"
    monkeypatch.delenv("CREDITD_URL")
    assert trainer_of(tmp_path, kind=CreditGRPOTrainer)._creditor.client.base_url == "http://127.0.0.1:8400"
