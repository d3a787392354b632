"""Settings of OpenRLHF under which credit would be lost, and releases of it in which something has moved: refused."""

import importlib
import json
import runpy
import sys

import pytest

pytest.importorskip("openrlhf", reason="the lane `trainer` installs OpenRLHF into an environment of its own")

from conventions.groups import OF_A_LIBRARY

pytestmark = OF_A_LIBRARY

from adapters import openrlhf_world as world  # noqa: E402
from adapters.openrlhf_world import (  # noqa: E402
    CANDIDATES,
    GAE,
    GROUPS,
    LOCAL,
    REMOTE,
    SENSITIVITY,
    SPANS,
    WITH_LOSS,
)
from creditd.adapters import compatibility, openrlhf, openrlhf_settings  # noqa: E402
from creditd.adapters.openrlhf_settings import NO_REWARD, actor_of, check_seams, check_settings, has_rewards  # noqa: E402

PREFIX = ["--credit.credit", "prefix"]
OAR = [*SENSITIVITY, *REMOTE]
WEIGHTS = ["--credit.weights", "global_step{step}_hf"]
SAVED = [*WEIGHTS, "--ckpt.save_hf", "--ckpt.save_steps", "1"]


def norm(estimator):
    """Another estimator than group_norm."""
    return ["--algo.advantage.estimator", estimator, *WITH_LOSS]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*CANDIDATES, *GROUPS, "--actor.policy_loss_type", "gspo"], "the credit of tokens is lost"),
        ([*CANDIDATES, *norm("rloo")], "the mean of the other responses"),
        ([*CANDIDATES, *norm("reinforce")], "whitens over the whole batch"),
        ([*CANDIDATES, *norm("reinforce_baseline")], "whitens over the whole batch"),
        ([*CANDIDATES, *norm("flash_reinforce")], "the mean of the whole batch"),
        ([*CANDIDATES, *norm("dr_grpo")], "with credit that is pooled; expected --credit.advantage centered or none"),
        (
            [*CANDIDATES, *norm("dr_grpo"), "--credit.advantage", "centered", *REMOTE],
            "whose advantage is standardised over each group",
        ),
        ([*SPANS, *norm("dr_grpo")], "with credit that is pooled"),
        ([*CANDIDATES, *GROUPS[:2]], "expected --algo.kl.use_loss"),
        ([*CANDIDATES, *GROUPS, "--reward.stop_properly_penalty_coef", "0.5"], "stop_properly_penalty_coef"),
        ([*CANDIDATES, *GROUPS, "--reward.overlong_buffer_len", "8"], "overlong_buffer_len"),
        ([*CANDIDATES, *GROUPS, "--reward.clip_range", "-1", "1"], "clip_range"),
        ([*CANDIDATES, *GROUPS, "--algo.dynamic_filtering_enable"], "has no reward of its own"),
        ([*CANDIDATES, *GROUPS, "--eval.dataset", "e"], "has no reward of its own"),
        ([*SPANS, *GROUPS, "--data.max_images_per_prompt", "1"], "reads text alone"),
        ([*CANDIDATES, *GAE], "which is an advantage already"),
        ([*SPANS, *GAE], "without --credit.credit"),
        ([*SPANS, *GAE, *PREFIX, "--credit.on_failure", "mask"], "nobody knows the rewards"),
        ([*SPANS, *GAE, *PREFIX, "--credit.advantage", "pooled"], "which makes advantages itself"),
        ([*SPANS, *GAE, *PREFIX, "--reward.clip_range", "-1", "1"], "clip_range"),
        ([*SPANS, *GAE, *PREFIX, "--reward.stop_properly_penalty_coef", "0.5"], "stop_properly_penalty_coef"),
        ([*SENSITIVITY, *GROUPS], "got --credit.model and no source of rewards"),
        ([*SENSITIVITY, *GROUPS, "--reward.remote_url", NO_REWARD], "got --credit.model and no source of rewards"),
        ([*OAR, *GAE], "advantages of a critic judge each token already"),
        ([*OAR, *GROUPS, "--actor.policy_loss_type", "gspo"], "the credit of tokens is lost"),
        ([*OAR, *GROUPS, "--data.max_images_per_prompt", "1"], "a policy that reads tokens alone"),
        ([*OAR, *GROUPS, *WEIGHTS, "--ckpt.save_hf"], "--ckpt.save_steps -1, which saves nothing"),
        ([*OAR, *GROUPS, *WEIGHTS, "--ckpt.save_steps", "1"], "without --ckpt.save_hf: no service can read"),
        ([*OAR, *GROUPS, *SAVED, "--ckpt.save_steps", "4"], "max_weights_age 0, .*or --credit.max_weights_age 3"),
        ([*OAR, *GROUPS, *SAVED, "--train.async_enable"], "of several, that nobody names"),
        ([*OAR, *GROUPS, *SAVED, "--ds.lora.rank", "8"], "--ds.lora.rank, whose checkpoints have the adapter alone"),
        ([*OAR, *GROUPS, *SAVED, "--ds.load_in_4bit"], "--ds.load_in_4bit, whose checkpoints have other tensors"),
        ([*OAR, *GROUPS, *SAVED, "--train.enable_ema"], "a moving average of weights"),
    ],
)
def test_what_would_lose_credit_is_refused(arguments, words):
    """With the reason and what was expected."""
    choices, args = world.chosen(*(arguments if "--credit.model" in arguments else [*arguments, *LOCAL]))
    with pytest.raises(ValueError, match=words):
        check_settings(args, choices)


def test_one_response_for_each_prompt_has_nothing_to_be_compared_with():
    """OpenRLHF's command line refuses it too, for its own estimators."""
    choices, args = world.chosen(*CANDIDATES, *GROUPS, *LOCAL)
    args.rollout.n_samples_per_prompt = 1
    with pytest.raises(ValueError, match="at least 2 responses"):
        check_settings(args, choices)


@pytest.mark.parametrize(
    "arguments",
    [
        [*CANDIDATES, *GROUPS],
        [*CANDIDATES, *GROUPS[:2], "--algo.kl.init_coef", "0"],
        [*CANDIDATES, *GROUPS[:2], "--credit.kl_in_reward", "keep"],
        [*CANDIDATES, *norm("dr_grpo"), "--credit.advantage", "centered"],
        [*CANDIDATES, *GROUPS, *REMOTE, "--algo.dynamic_filtering_enable", "--eval.dataset", "e"],
        [*SPANS, *GROUPS],
        [*SPANS, *GAE, *PREFIX, "--reward.overlong_buffer_len", "8", *REMOTE],
    ],
)
def test_what_keeps_credit_is_taken(arguments):
    """And OpenRLHF's command line reads the same."""
    choices, args = world.chosen(*arguments, *LOCAL)
    check_settings(args, choices)
    assert has_rewards(args) is ("--reward.remote_url" in arguments)
    if not has_rewards(args):
        assert args.reward.remote_url == [NO_REWARD]


@pytest.mark.parametrize(
    "arguments",
    [
        GROUPS,
        GROUPS[:2],
        *(norm(name) for name in ("rloo", "reinforce", "reinforce_baseline", "dr_grpo", "flash_reinforce")),
        [*GROUPS, "--reward.clip_range", "-1", "1", "--reward.overlong_buffer_len", "8"],
        [*GROUPS, "--reward.stop_properly_penalty_coef", "0.5"],
        [*GROUPS, "--algo.dynamic_filtering_enable", "--eval.dataset", "e"],
        [*GROUPS, "--train.async_enable"],
        [*GROUPS, "--ds.lora.rank", "8", "--credit.weight_version", "mine"],
        [*GROUPS, *SAVED],
        [*GROUPS, *SAVED, "--ckpt.save_steps", "4", "--credit.max_weights_age", "3", "--ckpt.disable_ds"],
    ],
)
def test_what_changes_rewards_of_openrlhf_is_taken_with_a_policy(arguments):
    """Its advantages are made of them, whatever they are."""
    choices, args = world.chosen(*OAR, *arguments)
    check_settings(args, choices)


@pytest.mark.parametrize("source", [["--reward.model_name_or_path", "m"], ["--train.agent_func_path", "a.py"], REMOTE])
def test_each_source_of_rewards_is_one(source):
    """A reward model of its own, an agent, or a server."""
    choices, args = world.chosen(*SENSITIVITY, *source, *GROUPS)
    check_settings(args, choices)


def test_an_estimator_that_nobody_knows_is_refused_with_a_policy():
    """A later release may have one whose advantages mean something else."""
    choices, args = world.chosen(*OAR, *GROUPS)
    args.algo.advantage.estimator = "soon"
    with pytest.raises(ValueError, match="soon, which creditd does not know"):
        check_settings(args, choices)


def test_saving_never_is_refused_as_the_trainer_has_it():
    """OpenRLHF makes infinity of -1 before its trainer is made."""
    choices, args = world.chosen(*OAR, *GROUPS, *SAVED)
    args.ckpt.save_steps = float("inf")
    with pytest.raises(ValueError, match=r"--ckpt.save_steps inf, which saves nothing"):
        check_settings(args, choices)


def test_this_release_has_every_seam():
    """0.11.2."""
    check_seams()
    assert actor_of("openrlhf.trainer.ppo_trainer", "PPOTrainer").__name__ == "PPOTrainer"


@pytest.mark.parametrize(
    ("module", "owner", "name"),
    [
        ("openrlhf.trainer.ppo_utils.experience_maker", "RemoteExperienceMaker", "make_experience_batch"),
        ("openrlhf.trainer.ppo_utils.experience_maker", "RemoteExperienceMaker", "get_advantages_and_returns"),
        ("openrlhf.trainer.ppo_trainer", "BasePPOTrainer", "train_step"),
        ("openrlhf.trainer.ppo_trainer", "BasePPOTrainer", "save_logs_and_checkpoints"),
    ],
)
def test_a_method_that_moved_is_named(monkeypatch, module, owner, name):
    """Before anything runs."""
    monkeypatch.delattr(getattr(importlib.import_module(module), owner), name)
    with pytest.raises(RuntimeError, match=f"has no {module}.{owner}.{name}"):
        check_seams()


def test_other_parameters_are_named(monkeypatch):
    """What it is, and what was expected."""

    def train_step(self, rollout_samples, global_step, more):
        return self, rollout_samples, global_step, more

    monkeypatch.setattr(world.trainers.BasePPOTrainer, "train_step", train_step)
    with pytest.raises(RuntimeError, match=r"global_step, more.*expected parameters rollout_samples, global_step,"):
        check_seams()


def test_a_trainer_that_is_no_actor_is_named(monkeypatch):
    """The adapter stands on the class inside."""
    monkeypatch.setattr(world.trainers, "PPOTrainer", world.trainers.BasePPOTrainer)
    with pytest.raises(RuntimeError, match=r"has no openrlhf.trainer.ppo_trainer.PPOTrainer.__ray_metadata__"):
        check_seams()
    with pytest.raises(RuntimeError, match="PPOTrainer, which is no actor of Ray"):
        actor_of("openrlhf.trainer.ppo_trainer", "PPOTrainer")


def test_fields_that_are_gone_are_named(monkeypatch):
    """Of experiences."""
    monkeypatch.setattr(openrlhf_settings, "_FIELDS", {"sequences", "hindsight"})
    with pytest.raises(RuntimeError, match="Experience without hindsight"):
        check_seams()


def test_a_command_line_with_other_imports_is_named(monkeypatch, tmp_path):
    """It would train without credit, and say nothing."""
    (tmp_path / "another_cli.py").write_text("from openrlhf.trainer.ppo_trainer import PPOTrainer as Trainer\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(openrlhf_settings, "CLI", "another_cli")
    with pytest.raises(RuntimeError, match="does not import PPOTrainerAsync"):
        check_seams()


def test_a_module_that_is_gone_is_named(monkeypatch):
    """As all."""
    monkeypatch.setattr(openrlhf_settings, "_EXPERIENCE", "openrlhf.trainer.ppo_utils.memories")
    with pytest.raises(RuntimeError, match=r"no module openrlhf.trainer.ppo_utils.memories"):
        check_seams()


def test_another_release_is_warned_of(monkeypatch):
    """If everything is where it was, it runs."""
    monkeypatch.setattr(compatibility, "version", lambda _: "0.12.0")
    with pytest.warns(RuntimeWarning, match="tested with OpenRLHF 0.11.2; this is 0.12.0"):
        check_seams()


def test_the_launcher_runs_their_command_line_with_credit(monkeypatch):
    """What is theirs arrives there as it was given, and the trainers that it imports have the adapter before them."""
    _, args = world.chosen(*CANDIDATES, *GAE, *LOCAL)
    seen = {}

    def run(name, **options):
        seen.update(name=name, options=options, argv=list(sys.argv))
        module = importlib.import_module("openrlhf.trainer.ppo_trainer")
        seen["trainer"] = actor_of(module.__name__, "PPOTrainer")
        seen["strategy"] = importlib.import_module("openrlhf.utils").get_strategy

    for module, name in (*openrlhf_settings.TRAINERS.items(), openrlhf_settings.STRATEGY):
        monkeypatch.setattr(f"{module}.{name}", getattr(importlib.import_module(module), name))
    monkeypatch.setattr(runpy, "run_module", run)
    monkeypatch.setattr(sys, "argv", ["before"])
    openrlhf.main([*CANDIDATES, *LOCAL, *world.THEIRS])
    assert seen["name"] == "openrlhf.cli.train_ppo_ray"
    assert seen["options"] == {"run_name": "__main__", "alter_sys": True}
    assert seen["argv"][1:] == [*world.THEIRS, "--reward.remote_url", NO_REWARD]
    with pytest.raises(ValueError, match="which is an advantage already"):
        seen["strategy"](args)
    assert seen["trainer"].credit_choices.of_reward == {"parser": json.loads(CANDIDATES[3])}
