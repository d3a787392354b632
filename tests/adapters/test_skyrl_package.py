"""SkyRL's adapter in the real package: its command line, generator, trainer, loss and processes."""

import asyncio
import inspect
import os
import subprocess
import sys

import pytest

pytest.importorskip("skyrl", reason="the lane `trainer` installs SkyRL into an environment of its own")

from adapters import skyrl_world as world
from adapters.contract import PARSER, PROMPTS, RAGGED, here
from conventions.groups import OF_A_LIBRARY
from creditd.adapters.compatibility import SKYRL
from creditd.adapters.skyrl import (
    CandidateReward,
    CreditConfig,
    CreditGenerator,
    LoopCredit,
    check_settings,
    handed_on,
    register,
)
from creditd.client import Client
from creditd.client.exchanges import answer_of, parsed
from services import running_service

pytestmark = OF_A_LIBRARY
EXTRAS = [{"label": "a"} for _ in PROMPTS]
ASKED = [PROMPTS[0], PROMPTS[world.GROUP]]


@pytest.fixture
def settings():
    """SkyRL's, with the estimator of creditd."""
    register()
    return world.validated(*world.OURS)


def score(prompts, candidates, completions, **_):
    """The rewards of the contract, without what prompts and labels add."""
    assert len(prompts) == len(completions)
    return [[{"six": None}.get(text, len(text) / 8) for text in row] for row in candidates]


def credited(settings, words=RAGGED.words, *, stops=None, weight=0.0, config=None):
    """SkyRL's generator with credit around it."""
    credit = LoopCredit(CandidateReward(score, PARSER), config or here(), tokenizer=world.tokenizer())
    return CreditGenerator(world.generator(settings, words, stops), credit, settings, environment_weight=weight)


def by_client(words=RAGGED.words, **options):
    """What the client says of the same sets."""
    spans = [[place for place, word in enumerate(row) if word not in {";", "<eos>"}] for row in words]
    with Client("local:") as client:
        return client.shapley(
            score(PROMPTS, [[row[place] for place in own] for row, own in zip(words, spans, strict=True)], words),
            groups=[row // world.GROUP for row in range(len(words))],
            spans=[[(place, place + 1) for place in own] for own in spans],
            n_tokens=list(map(len, words)),
            **{"tokens": {"other": "set"}, "expect": {"group_size": world.GROUP}} | options,
        )


def test_skyrls_loss_moves_each_token_by_the_advantage_on_the_wire(settings, tmp_path):
    """Its gradient is what a service answered, over the batch's tokens; rows that fill the batch up move nothing."""
    python = os.environ.get("SERVICE_PYTHON")
    if python is None:
        pytest.skip("SERVICE_PYTHON names no interpreter that can run the service")
    kept = tmp_path / "kept"
    with running_service(directory=tmp_path, python=python) as url:
        made = credited(settings, config=CreditConfig(url=url, record=kept))
        trains = world.trainer(settings, made)
        data = world.stepped(trains, *world.batch(ASKED, extras=EXTRAS))
        made._credit.reward.creditor.client.close()
    found = world.gradients(trains, data)
    (exchange,) = kept.iterdir()
    answered = answer_of(parsed(exchange.read_bytes())).token_advantages.to_list()
    count = sum(map(len, answered))
    for own, other in zip(world.by_rows(found, list(map(len, answered))), answered, strict=True):
        assert [-value * count for value in own] == pytest.approx(other, rel=1e-6, abs=0.0)
    assert len(found) == 9
    assert not found[8].any()
    assert int((found != 0).sum()) == sum(value != 0 for row in answered for value in row)
    assert answered == by_client().token_advantages.to_list()


def test_metrics_are_those_of_skyrls_log(settings):
    """Beside its own, whose rewards are sums of advantages."""
    trains = world.trainer(settings, credited(settings))
    world.stepped(trains, *world.batch(ASKED, extras=EXTRAS))
    expected = by_client()
    best = [max(len(word) for word in row if word not in {";", "<eos>"}) / 8 for row in RAGGED.words]
    assert trains.all_metrics["credit/fallbacks"] == 0.0
    assert trains.all_metrics["credit/reward/mean"] == pytest.approx(sum(best) / len(best))
    sums = [sum(row) for row in expected.token_advantages.to_list()]
    assert trains.all_metrics["reward/avg_raw_reward"] == pytest.approx(sum(sums) / len(sums))


def test_rewards_of_the_environment_are_of_the_whole_response(settings):
    """SkyRL's own generator gives one to each token: their sum counts."""
    trains = world.trainer(settings, credited(settings, weight=0.5))
    data = world.stepped(trains, *world.batch(ASKED, extras=EXTRAS))
    words = [float(len(row)) for row in RAGGED.words]
    expected = by_client(set_rewards=[0.5 * count for count in words]).token_advantages.to_list()
    for own, other in zip(world.by_rows(data["advantages"], list(map(len, expected))), expected, strict=True):
        assert own == pytest.approx(other, abs=1e-6)


def test_a_candidate_that_was_cut_off_is_none(settings):
    """SkyRL says which completions ended by their length."""
    words = (*RAGGED.words[:7], ("two", ";", "three"))
    stops = ["stop"] * 7 + ["length"]
    trains = world.trainer(settings, credited(settings, words, stops=stops))
    data = world.stepped(trains, *world.batch(ASKED, extras=EXTRAS))
    assert trains.all_metrics["credit/candidates"] == 15 / 8
    assert world.by_rows(data["advantages"], [3] * 8)[7][0] != 0.0


def test_evaluation_has_the_environments_rewards(settings):
    """Nobody is asked."""
    made = credited(settings, config=here(url="http://127.0.0.1:9"))
    given, _ = world.batch(ASKED, phase="eval", extras=EXTRAS)
    output = asyncio.run(made.generate(given))
    assert [sum(row) for row in output["rewards"]] == [float(len(row)) for row in RAGGED.words]


def test_groups_that_are_generated_at_once_do_not_mix(settings):
    """As SkyRL's asynchronous trainer does it, which also looks for `disable_tqdm`."""
    made = credited(settings)
    assert "disable_tqdm" in inspect.signature(made.generate).parameters

    async def all_groups():
        given, _ = world.batch(ASKED, extras=EXTRAS)
        shares = [slice(0, world.GROUP), slice(world.GROUP, 2 * world.GROUP)]
        batches = [
            {name: value[own] if isinstance(value, list) else value for name, value in given.items()} for own in shares
        ]
        return await asyncio.gather(*(made.generate(one, disable_tqdm=True) for one in batches))

    found = [row for output in asyncio.run(all_groups()) for row in output["rewards"]]
    for own, other in zip(found, by_client().token_advantages.to_list(), strict=True):
        assert own == pytest.approx(other, abs=1e-12)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.algorithm.advantage_estimator=grpo", "makes advantages of their sums"),
        ("generator.step_wise_trajectories=true", "last step alone"),
        ("generator.merge_stepwise_output=true", "step-wise training"),
        ("trainer.critic.model.path=critic", "would learn advantages"),
        ("trainer.algorithm.use_kl_in_reward=true", "added to advantages"),
        ("trainer.algorithm.advantage_batch_normalize=true", "once more"),
        ("trainer.algorithm.dynamic_sampling.type=filter", "the spread of rewards"),
        ("trainer.fully_async.sample_full_batch=true", "the spread of rewards"),
        ("generator.apply_overlong_filtering=true", "what the policy wrote"),
        ("trainer.algorithm.policy_loss_type=cross_entropy", "does not look at advantages"),
    ],
)
def test_settings_that_lose_credit_are_refused(override, words):
    """By the name of the setting, where the generator is made."""
    name, _, value = override.partition("=")
    with pytest.raises(ValueError, match=f"got {name}={value.title() if value == 'true' else value}.*{words}"):
        CreditGenerator(None, None, world.configured(*world.OURS, override))


def test_skyrls_own_settings_are_not_refused(settings):
    """As they are when nothing is said, but for the estimator."""
    check_settings(settings)


@pytest.mark.parametrize("loss", ["regular", "dual_clip", "gspo", "cispo", "sapo", "dppo", "clip_cov"])
def test_every_loss_that_is_taken_trains_each_token_on_its_own_advantage(loss, settings):
    """At the weights that wrote it each gradient is in one proportion to the token's advantage; none is lost."""
    settings.trainer.algorithm.policy_loss_type = loss
    check_settings(settings)
    trains = world.trainer(settings, credited(settings))
    data = world.stepped(trains, *world.batch(ASKED, extras=EXTRAS))
    found = world.gradients(trains, data)
    lengths = list(map(len, RAGGED.words))
    pairs = zip(world.by_rows(found, lengths), by_client().token_advantages.to_list(), strict=True)
    shares = [own / value for row, values in pairs for own, value in zip(row, values, strict=True) if value]
    assert len(shares) > 20
    assert shares == pytest.approx([shares[0]] * len(shares), rel=1e-5)
    assert shares[0] < 0.0


SHIM = """
import sys
import typing

if sys.version_info < (3, 12):
    import typing_extensions

    typing.TypedDict = typing_extensions.TypedDict
"""
DRIVER = """
from adapters import skyrl_world as world
import ray
from skyrl.backends.skyrl_train.utils.ppo_utils import AdvantageEstimatorRegistry, sync_registries

try:
    world.validated(*world.OURS)
except AssertionError as error:
    print("before:", "invalid advantage_estimator: creditd" in str(error), flush=True)
from creditd.adapters.skyrl import register

register()
register()
world.validated(*world.OURS)
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
sync_registries()


@ray.remote(num_cpus=1)
def entrypoint():
    found = AdvantageEstimatorRegistry.get("creditd")
    return f"{found.__module__}.{found.__name__}"


print("there:", ray.get(entrypoint.remote()), flush=True)
ray.shutdown()
"""


def test_the_estimator_arrives_in_skyrls_processes(tmp_path):
    """Registered before the configuration is looked at; unregistered, SkyRL refuses it."""
    (tmp_path / "sitecustomize.py").write_text(SHIM)
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)])}
    command = [sys.executable, str(tmp_path / "driver.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line for line in done.stdout.splitlines() if line.startswith(("before", "there"))] == [
        "before: True",
        f"there: {handed_on.__module__}.{handed_on.__name__}",
    ]


def test_what_is_installed_is_what_is_tested():
    """Its seams are where the adapter says."""
    assert SKYRL.is_tested(SKYRL.installed)
    assert SKYRL.moved() == []
