"""TRAINERS.md: its programs run, against objects with the fields that the trainers document."""

import asyncio
import re
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from adapters.test_loop_credit import IDS, LENGTHS, PARSER, PROMPTS, Tokenizer, by_client, score
from creditd.adapters.loop import CandidateReward, CreditConfig, LoopCredit

PAGE = (Path(__file__).parents[2] / "TRAINERS.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PARTS = ("args, samples", "rllm", "score_group(self, group)")


@pytest.fixture
def credit():
    """What the recipes call so."""
    return LoopCredit(CandidateReward(score, PARSER), CreditConfig(url="local:"), tokenizer=Tokenizer())


def program(part, **names):
    """The names that a program has defined, beside those that are given to it."""
    (text,) = (text for text in PROGRAMS if part in text)
    exec(text, names)  # noqa: S102 - of the page
    return names


def modules(monkeypatch, path, **names):
    """A module that has these names, with its packages."""
    parts = path.split(".")
    for depth in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), types.ModuleType(".".join(parts[:depth])))
    vars(sys.modules[path]).update(names)


def test_every_program_is_run():
    """No other block of the page does anything."""
    assert len(PROGRAMS) == len(PARTS)
    assert all(any(part in text for part in PARTS) for text in PROGRAMS)


@pytest.mark.models
def test_the_recipe_for_slime(credit):
    """A group at a time; the advantages travel in the samples' metadata, and lengths are checked."""
    torch = pytest.importorskip("torch", reason="the lane `models` installs torch")
    names = program("args, samples", credit=credit)
    samples = [
        SimpleNamespace(
            prompt=prompt, tokens=[6, 7, *ids], response_length=len(ids), loss_mask=None, label="l", train_metadata=None
        )
        for prompt, ids in zip(PROMPTS[:2], IDS[:2], strict=True)
    ]
    assert asyncio.run(names["reward"](None, samples)) == [1.0, 0.5]
    data = {"metadata": [sample.train_metadata for sample in samples], "response_lengths": LENGTHS[:2]}
    names["advantages"](None, data)
    expected = by_client().token_advantages.to_list()[:2]
    for row, own in zip(data["advantages"], expected, strict=True):
        assert torch.allclose(row, torch.tensor(own))
    with pytest.raises(ValueError, match="expected one per token"):
        names["advantages"](None, data | {"response_lengths": [1, 1]})


def test_the_recipe_for_rllm(credit, monkeypatch):
    """All groups in one call; each step has a list as long as its response."""
    known = {}
    register = lambda name: lambda function: known.setdefault(name, function)  # noqa: E731 - as theirs
    modules(monkeypatch, "rllm.trainer.algorithms.advantage", register_adv_estimator=register)
    program("rllm", credit=credit)
    groups = []
    for start in (0, 2):
        rows = [
            SimpleNamespace(
                steps=[SimpleNamespace(chat_completions=[{"role": "user", "content": "p"}, {}], response_ids=ids)]
            )
            for ids in IDS[start : start + 2]
        ]
        groups.append(SimpleNamespace(trajectories=rows))
    rewards = [np.array([1.0, 0.0]), np.array([0.5, 0.5])]
    known["creditd"](rewards, None, traj_groups=groups)
    found = [one.steps[0].advantage for group in groups for one in group.trajectories]
    assert found == by_client(set_rewards=[1.0, 0.0, 0.5, 0.5]).token_advantages.to_list()
    assert known["creditd"].writes_step_advantages
    groups[0].trajectories[0].steps *= 2
    with pytest.raises(ValueError, match="one step per trajectory"):
        known["creditd"](rewards, None, traj_groups=groups)


def test_the_recipe_for_prime_rl(credit):
    """A list per rollout, as long as what was sampled."""
    assigned = []
    group = [
        SimpleNamespace(prompt="p", completion_ids=ids, reward=0.0, assign_advantages=assigned.append)
        for ids in IDS[:2]
    ]
    asyncio.run(program("score_group(self, group)", credit=credit)["score_group"](None, group))
    assert assigned == by_client(set_rewards=[0.0, 0.0, None, None]).token_advantages.to_list()[:2]
