"""VERL.md is true: its table names the keys that there are; its programs run in tests/adapters/test_verl_runs.py."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from creditd.adapters.checkpoint_weights import CheckpointKeys
from creditd.adapters.compatibility import VERL
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.adapters.verl_checks import ESTIMATORS, KEEP_TOKEN_REWARDS, LOSSES_OF_MEANS
from creditd.adapters.verl_settings import CommonSettings, Kind, known_keys
from creditd.adapters.verl_weights import TRACKER

PAGE = (Path(__file__).parents[2] / "VERL.md").read_text(encoding="utf-8")
MAKEFILE = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")


def table(*header):
    """Rows of the table with a header, as lists of cells."""
    line = f"| {' | '.join(header)} |\n"
    assert PAGE.count(line) == 1
    lines = PAGE.split(line)[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in lines]


def test_every_block_is_tested():
    """Rewards, the run that has them, and PPO: test_verl_runs.py of tests/adapters; OAR: test_verl_checkpoints.py."""
    assert re.findall(r"^```(\w+)$", PAGE, re.MULTILINE) == ["python", "sh", "sh", "sh"]


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_table_has_the_keys_of_each_kind(kind):
    """Neither more nor fewer."""
    rows = table("key", "default", "of kinds", "what it says")
    said = {key.strip("`") for key, _, kinds, _ in rows if kinds == "all" or kind in kinds.split(", ")}
    assert said == {name for part in known_keys(kind) for name in part}


def test_the_defaults_of_all_kinds_are_those_of_the_code():
    """As far as they are numbers or names."""
    said = {key.strip("`"): default for key, default, *_ in table("key", "default", "of kinds", "what it says")}
    for field in fields(CommonSettings):
        if field.name in {"kind", "incomplete_groups"}:
            assert said[field.name] == f"`{field.default}`"
        elif field.name in {"columns", "silent"}:
            assert said[field.name] == f"`[{', '.join(field.default)}]`"
        elif field.default is not None:
            assert float(said[field.name]) == field.default


def test_the_defaults_of_checkpoints_are_those_of_the_code():
    """And null where there is none."""
    said = {key.strip("`"): default for key, default, *_ in table("key", "default", "of kinds", "what it says")}
    assert said["weights"] == said["weight_version"] == said["initial_weights"] == said["run"] == "null"
    assert int(said["max_weights_age"]) == CheckpointKeys("{step}").max_weights_age
    assert float(said["push_deadline_s"]) == SensitivityConfig(parser="hashes", model="p").push_deadline_s
    assert f"`{TRACKER}`" in PAGE


def test_estimators_and_refusals_are_those_of_the_code():
    """By name; and the release is the one that the tests install."""
    rows = {name: kind for name, kind, _ in table("`algorithm.adv_estimator`", "`kind`", "what trains the tokens")}
    assert {kind: rows[f"`{name}`"].strip("`") for kind, name in ESTIMATORS.items()} == {
        kind: kind for kind in ESTIMATORS
    }
    assert rows[", ".join(f"`{name}`" for name in KEEP_TOKEN_REWARDS)] == "`span_rewards`"
    assert all(f"loss_mode={name}" in PAGE for name in LOSSES_OF_MEANS)
    assert f"verl **{VERL.tested}**" in PAGE
    assert f"VERL_VERSION := {VERL.tested}\n" in MAKEFILE
