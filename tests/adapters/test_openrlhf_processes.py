"""The adapter arrives in the process that trains: OpenRLHF's own actors, started as its command line starts them."""

import importlib
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("openrlhf", reason="the lane `trainer` installs OpenRLHF into an environment of its own")

from conventions.groups import OF_A_LIBRARY

pytestmark = OF_A_LIBRARY

import ray  # noqa: E402

from adapters import openrlhf_world as world  # noqa: E402
from adapters import tiny  # noqa: E402
from creditd.adapters.openrlhf_settings import STRATEGY, TRAINERS  # noqa: E402
from creditd.adapters.openrlhf_trainer import install  # noqa: E402
from openrlhf_here import without_a_gpu, write_empty_packages  # noqa: E402

CREDIT = [*world.CANDIDATES, *world.LOCAL]
POLICY = [
    *(*world.SENSITIVITY, *world.REMOTE, "--credit.on_failure", "group_reward"),
    *("--credit.url", "http://127.0.0.1:9", "--credit.deadline_s", "0.2"),
]
A_MODEL = ["--credit.reward", "rm", *world.CANDIDATES[2:]]
PATIENCE_S = 240.0
"""Ten times what starting the processes takes on a slow machine."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a policy's tokenizer, prompts, and names of packages that need a GPU; Ray knows the latter."""
    directory = tmp_path_factory.mktemp("openrlhf")
    write_empty_packages(directory / "empty")
    tiny.tokenizer().save_pretrained(directory / "policy")
    tiny.model().config.save_pretrained(directory / "policy")
    lines = [json.dumps({"input": prompt, "label": "l"}) for prompt in world.PROMPTS]
    (directory / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    path = {"PYTHONPATH": search_path(directory)}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": path})
    yield directory
    ray.shutdown()


def search_path(directory):
    """Where other processes find the empty packages, and then what this one finds."""
    return os.pathsep.join([str(directory / "empty"), *sys.path])


@pytest.fixture
def trainers():
    """OpenRLHF's modules, put back afterwards."""
    with pytest.MonkeyPatch.context() as patch, without_a_gpu():
        modules = {module: importlib.import_module(module) for module in TRAINERS}
        for module, name in TRAINERS.items():
            patch.setattr(modules[module], name, getattr(modules[module], name))
        utilities = importlib.import_module(STRATEGY[0])
        patch.setattr(utilities, STRATEGY[1], getattr(utilities, STRATEGY[1]))
        yield modules


def started(place, trainers, module, *more, credit=CREDIT):
    """An actor, started with the arguments that OpenRLHF's command line gives it."""
    from openrlhf.utils import get_strategy

    choices, args = world.chosen(
        *(*credit, *world.GROUPS, "--data.prompt_dataset", str(place / "prompts.jsonl")),
        *("--data.label_key", "label", *more),
    )
    install(choices)
    actor = getattr(trainers[module], TRAINERS[module])
    policy = str(place / "policy")
    groups = (world.Group(-0.5), None, None, None)
    return actor.remote(policy, get_strategy(args), *groups, [], do_sample=True, max_len=64, max_new_tokens=None)


def trained(trainer):
    """What a batch is trained on, and the log of the step."""
    status, step = ray.get(trainer.train_step.remote(world.samples(tiny.tokenizer()), 4), timeout=PATIENCE_S)
    appended = ray.get(trainer.__ray_call__.remote(lambda self: self.actor_model_group.appended), timeout=PATIENCE_S)
    assert step == 5
    return world.by_rows(appended), status


def here():
    """The same in this process."""
    trainer = world.trainer_of(*world.CANDIDATES, *world.LOCAL, *world.GROUPS)
    trainer.train_step(world.samples(tiny.tokenizer()), 4)
    return world.by_rows(trainer.seen)


def test_the_actor_that_trains_has_credit(place, trainers):
    """`PPOTrainer`, in its own process: the numbers of this one, and the metrics in its log."""
    actor = started(place, trainers, "openrlhf.trainer.ppo_trainer")
    assert ray.get(actor.get_max_steps.remote(), timeout=PATIENCE_S) == 1
    process = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=PATIENCE_S)
    advantages, status = trained(actor)
    assert process != os.getpid()
    assert advantages == here()
    assert status["credit/fallbacks"] == 0.0
    ray.kill(actor)


def test_the_actor_that_trains_beside_generation_has_credit(place, trainers):
    """`TrainingActor`, which is started by the process of `PPOTrainerAsync`, two processes away from this one."""
    actor = started(place, trainers, "openrlhf.trainer.ppo_trainer_async", "--train.async_enable")
    inner = ray.get(actor.__ray_call__.remote(lambda self: self.trainer_actor), timeout=PATIENCE_S)
    advantages, status = trained(inner)
    assert advantages == here()
    assert status["credit/candidates"] == 2.0
    ray.kill(actor)


@pytest.mark.parametrize(
    ("module", "more"), [(name, ["--train.async_enable"] if name.endswith("async") else []) for name in TRAINERS]
)
def test_the_actor_that_trains_has_a_policy(place, trainers, module, more):
    """Whether or not generation waits; nobody is there, so that its log says what the failure policy did."""
    actor = started(place, trainers, module, *more, credit=POLICY)
    inner = ray.get(actor.__ray_call__.remote(lambda self: getattr(self, "trainer_actor", None)), timeout=PATIENCE_S)
    batch = world.samples(tiny.tokenizer(), rewards=[1.0, 0.0, 0.25, 0.25, 0.0, 2.0])
    status, _ = ray.get((inner or actor).train_step.remote(batch, 4), timeout=PATIENCE_S)
    assert (status["credit/errors"], status["credit/fallbacks"]) == (1.0, 1.0)
    assert status["credit/without_contrast"] == 0.0
    ray.kill(actor)


def test_settings_are_refused_where_they_arrive(place, trainers):
    """With the reason, before a model is loaded."""
    actor = started(place, trainers, "openrlhf.trainer.ppo_trainer", "--actor.policy_loss_type", "gspo")
    with pytest.raises(ray.exceptions.RayError, match="the credit of tokens is lost"):
        ray.get(actor.get_max_steps.remote(), timeout=PATIENCE_S)


def test_the_launcher_reaches_the_process_that_trains(place):
    """The whole way, in processes of its own: what the actor refuses is what the command ends with.

    That a model is asked for where there is none is found out by who is asked, so in the process that trains.
    """
    policy, prompts = str(place / "policy"), str(place / "prompts.jsonl")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "creditd.adapters.openrlhf", *A_MODEL, *world.LOCAL, *world.GROUPS),
            *("--actor.model_name_or_path", policy, "--data.prompt_dataset", prompts, "--algo.kl.init_coef", "0"),
            *("--rollout.n_samples_per_prompt", "3", "--rollout.batch_size", "2", "--rollout.micro_batch_size", "2"),
            *("--actor.num_gpus_per_node", "1", "--vllm.num_engines", "0", "--ds.attn_implementation", "eager"),
        ],
        env={**os.environ, "PYTHONPATH": search_path(place), "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode != 0
    assert "PPOTrainer.__init__()" in ended.stderr
    assert "where there is no model; expected the address of a service" in ended.stderr
