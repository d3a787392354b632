"""OPENRLHF.md is true: its commands are read by the launcher and by OpenRLHF, and its tables say what happens."""

import re
import shlex
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("openrlhf", reason="the lane `trainer` installs OpenRLHF into an environment of its own")

from conventions.groups import OF_A_LIBRARY

pytestmark = OF_A_LIBRARY

from adapters import openrlhf_world as world  # noqa: E402
from creditd.adapters.compatibility import OPENRLHF  # noqa: E402
from creditd.adapters.openrlhf_options import KINDS, names, split_arguments  # noqa: E402
from creditd.adapters.openrlhf_settings import check_settings, has_rewards  # noqa: E402

PAGE = (Path(__file__).parents[2] / "OPENRLHF.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [text.replace("\\\n", " ") for kind, text in BLOCKS if kind == "sh"]
BEFORE = ["python", "-m", "creditd.adapters.openrlhf"]
WITH = {
    "candidates": [*world.CANDIDATES, *world.GROUPS],
    "spans": [*world.SPANS, *world.GROUPS],
    "gae": [*world.SPANS, *world.GAE, "--credit.credit", "prefix"],
    "sensitivity": [*world.SENSITIVITY, *world.REMOTE, *world.GROUPS],
}
WITH["weights"] = [
    *(*WITH["sensitivity"], "--credit.weights", "global_step{step}_hf"),
    *("--ckpt.save_hf", "--ckpt.save_steps", "1"),
]
NO_REWARD_OF_CREDITD = ("sensitivity", "weights")


def base_of(kind):
    """What a row stands on, computed in this process where that can be."""
    return [*WITH[kind], *(() if kind in NO_REWARD_OF_CREDITD else world.LOCAL)]


def table(*header):
    """Rows of the table with a header, as lists of cells."""
    line = f"| {' | '.join(header)} |\n"
    assert PAGE.count(line) == 1
    lines = PAGE.split(line)[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in lines]


@pytest.fixture
def rewards(tmp_path, monkeypatch):
    """The file of the page, where the commands are given; its functions."""
    (text,) = (text for kind, text in BLOCKS if kind == "python")
    (tmp_path / "rewards.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    functions = {}
    exec(compile(text, "rewards.py", "exec"), functions)  # noqa: S102 - it is our own page
    return functions


def test_every_block_is_tested():
    """One file and four commands; `tests/adapters/test_openrlhf_checkpoints.py` runs the last one as well."""
    assert [kind for kind, _ in BLOCKS] == ["python", "sh", "sh", "sh", "sh"]
    assert all(shlex.split(text)[:3] == BEFORE for text in COMMANDS)
    assert f"OpenRLHF {OPENRLHF.tested}" in PAGE


@pytest.mark.parametrize("text", COMMANDS[:3], ids=["candidates", "spans", "ppo"])
def test_each_command_is_read_by_both_and_refused_by_none(text, rewards):
    """By the launcher, then by OpenRLHF's own command line, up to where it would start Ray."""
    assert rewards
    choices, others = split_arguments(shlex.split(text)[3:])
    args = world.arguments_of(others)
    check_settings(args, choices)
    reward, config = choices.made()
    assert not has_rewards(args)
    assert (reward.model == "rm") is ("reward rm " in text)
    assert config.on_failure == ("group_reward" if "on_failure" in text else "raise")


def test_the_command_of_oar_is_read_by_both_and_refused_by_none():
    """Its checkpoints are where the service is told that they are."""
    choices, others = split_arguments(shlex.split(COMMANDS[3])[3:])
    args = world.arguments_of(others)
    check_settings(args, choices)
    assert has_rewards(args)
    assert choices.made().model == "policy"
    assert choices.checkpoints.folder_at(3) == "global_step3_hf"
    assert choices.checkpoints.path_at(3, "through") == "through"
    assert f'weights_root = "{args.ckpt.path}"' in PAGE


def test_the_functions_are_what_a_reward_calls(rewards):
    """One number per candidate, and per text."""
    assert rewards["score"](["p"], [["4", "5"]], ["1. 4\n2. 5"], labels=["5"]) == [[0.0, 1.0]]
    assert rewards["judge"](["p"], ["yes because"]) == [0.98]


def test_the_table_has_every_option():
    """Once each, and no other one, with the kinds that take it."""
    rows = table("option", "of", "what it takes")
    assert sorted(row[0].strip("`") for row in rows) == sorted(names())
    for option, of, _ in rows:
        kinds = KINDS[option.strip("`").removeprefix("--credit.")]
        assert of == ("all" if len(kinds) == 3 else ", ".join(kinds)), option


REFUSED = table("with", "setting", "because")


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: f"{row[0]} {row[1]}")
def test_what_a_row_says_is_refused(row):
    """With what the others of its kind have, which is not refused."""
    given, setting, _ = row
    base = base_of(given)
    choices, args = world.chosen(*base)
    check_settings(args, choices)
    choices, args = world.chosen(*base, *shlex.split(setting.strip("`")))
    with pytest.raises(ValueError, match="got "):
        check_settings(args, choices)


@pytest.mark.parametrize(
    "row", table("`--algo.advantage.estimator`", "with", "tokens are trained on"), ids=lambda row: row[0]
)
def test_each_estimator_that_is_taken(row):
    """With each kind of reward that its row names, and the advantage where it names one."""
    estimators, kinds, what = row
    for estimator, kind in product(estimators.split(", "), kinds.split(", ")):
        more = ["--credit.advantage", "centered"] if "centered" in what else []
        more += ["--credit.credit", "prefix"] if estimator == "`gae`" else []
        settings = ["--algo.advantage.estimator", estimator.strip("`"), *world.WITH_LOSS]
        choices, args = world.chosen(*base_of(kind), *more, *settings)
        check_settings(args, choices)
