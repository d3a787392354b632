"""SKYRL.md is true: its programs run in SkyRL's own trainer, its command is read, its table says what happens."""

import asyncio
import os
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("skyrl", reason="the lane `trainer` installs SkyRL into an environment of its own")

from adapters import skyrl_world as world
from conventions.groups import OF_A_LIBRARY
from creditd.adapters.compatibility import SKYRL
from creditd.adapters.skyrl import CreditGenerator, check_settings, register
from creditd.client import Client
from services import running_service

pytestmark = OF_A_LIBRARY
PAGE = (Path(__file__).parents[2] / "SKYRL.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
TRAINING, SPANS = (text for kind, text in BLOCKS if kind == "python")
(COMMAND,) = (text.replace("\\\n", " ") for kind, text in BLOCKS if kind == "sh")
WORDS = (
    ("one", ";", "two", "<eos>"), ("three", "<eos>"), ("two", ";", "two", "<eos>"), ("five", ";", "four", "<eos>"),
    ("one", "<eos>"), ("one", ";", "four", "<eos>"), ("five", ";", "five", "<eos>"), ("two", ";", "three", "<eos>"),
)  # fmt: skip
TOPICS = ["one two"] * 4 + ["five"] * 4
EXTRAS = [{"topic": topic} for topic in TOPICS]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The toy reward model of SCAR.md, in the environment of development."""
    python = os.environ.get("SERVICE_PYTHON")
    if python is None:
        pytest.skip("SERVICE_PYTHON names no interpreter that can run the service")
    script = Path(__file__).with_name("scar_service.py")
    environment = os.environ | {"PYTHONPATH": str(script.parents[1])}
    with running_service(
        script=script, directory=tmp_path_factory.mktemp("service"), python=python, env=environment
    ) as url:
        yield url


def program(text):
    """The names that it has defined; nothing is started."""
    names = {"__name__": "train"}
    exec(compile(text, "train.py", "exec"), names)  # noqa: S102 - of our own page
    return names


def test_every_block_is_tested():
    """Two programs and a command; the version is the one that the adapter knows."""
    assert [kind for kind, _ in BLOCKS] == ["python", "sh", "python"]
    assert f"SkyRL {SKYRL.tested}" in PAGE


def test_the_program_trains_tokens_on_their_credit(service, monkeypatch):
    """Its experiment makes SkyRL's own generator, and the loss gets what the service answers."""
    register()
    monkeypatch.setenv("CREDITD_URL", service)
    settings = world.validated(*world.OURS)
    experiment = program(TRAINING)["CreditExp"]
    made = experiment.get_generator(experiment.__new__(experiment), settings, world.tokenizer(), world.engine(WORDS))
    assert isinstance(made, CreditGenerator)
    trains = world.trainer(settings, made)
    data = world.stepped(trains, *world.batch(["ask one", "ask two"], extras=EXTRAS))
    spans = [[place for place, word in enumerate(row) if word not in {";", "<eos>"}] for row in WORDS]
    rewards = [
        [float(row[place] in topic) for place in own] for row, own, topic in zip(WORDS, spans, TOPICS, strict=True)
    ]
    with Client(service) as client:
        expected = client.shapley(
            rewards,
            groups=[row // world.GROUP for row in range(len(WORDS))],
            spans=[[(place, place + 1) for place in own] for own in spans],
            n_tokens=list(map(len, WORDS)),
            tokens={"other": "set"},
        ).token_advantages.to_list()
    for own, other in zip(world.by_rows(data["advantages"], list(map(len, WORDS))), expected, strict=True):
        assert own == pytest.approx(other, abs=1e-6)
    assert any(value for row in expected for value in row)
    assert trains.all_metrics["credit/errors"] == 0.0
    made._credit.reward.creditor.client.close()


def test_the_command_is_read_by_skyrl():
    """Its settings are known, and allowed, on a machine of the size that the tests have."""
    words = shlex.split(COMMAND)
    assert words[:2] == ["python", "train.py"]
    register()
    check_settings(world.validated(*words[2:], *world.ONE_GPU))


@pytest.mark.parametrize(
    "setting", re.findall(r"^\| `([\w.]+=\w+)` \|", PAGE, re.MULTILINE), ids=lambda one: one.rpartition(".")[2]
)
def test_what_the_table_refuses_is_refused(setting):
    """By the name of the setting."""
    with pytest.raises(ValueError, match=f"got {setting.partition('=')[0]}="):
        check_settings(world.configured(*world.OURS, setting))


def test_the_table_has_all_that_is_refused():
    """Neither more nor fewer."""
    from creditd.adapters import skyrl

    refused = {path for path, _, _ in skyrl._REFUSED} | {"trainer.algorithm.advantage_estimator"}
    assert {one.partition("=")[0] for one in re.findall(r"^\| `([\w.]+=\w+)` \|", PAGE, re.MULTILINE)} == refused


def test_the_rewards_of_spans_arrive_where_skyrls_gae_reads_them(service, monkeypatch):
    """Each sum is v(P) − v(∅), in front of SkyRL's own estimator; evaluation is left as it is."""
    monkeypatch.setenv("CREDITD_URL", service)
    settings = world.configured("trainer.algorithm.advantage_estimator=gae", "trainer.critic.model.path=critic")
    made = program(SPANS)["SpanRewards"](world.generator(settings, WORDS), world.tokenizer())
    given, _ = world.batch(["ask one", "ask two"], phase="eval")
    assert asyncio.run(made.generate(given))["rewards"][0] == [0.0, 0.0, 0.0, 4.0]
    made.generator = world.generator(settings, WORDS)
    trains = world.trainer(settings, made)
    data = world.stepped(trains, *world.batch(["ask one", "ask two"]), values=True)
    made.client.close()
    sums = data["rewards"].sum(dim=-1).tolist()
    counted = [-0.125 * sum(word not in {";", "<eos>"} for word in row) for row in WORDS]
    assert sums[: len(WORDS)] == pytest.approx(counted)
    assert len({round(value, 6) for value in data["rewards"][0].tolist()}) > 1
    assert bool(data["advantages"].isfinite().all())
