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
THINK = 6
"""The token that opens thinking, in the vocabulary of the loops' tests."""
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
            prompt=prompt,
            tokens=[6, 7, *ids],
            response_length=len(ids),
            loss_mask=None,
            label="l",
            train_metadata=None,
            status=SimpleNamespace(value="completed"),
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
    samples[1].status.value = "truncated"  # its last item was not written to the end
    assert asyncio.run(names["reward"](None, samples)) == [1.0, 0.5]
    assert samples[1].train_metadata["creditd"] != expected[1]
    for sample in samples:
        sample.tokens[1] = THINK  # the prompt has opened its thinking, which nothing closes
    assert asyncio.run(names["reward"](None, samples)) == [0.0, 0.0]


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
                steps=[
                    SimpleNamespace(
                        chat_completions=[{"role": "user", "content": "p"}, {}],
                        prompt_ids=[7],
                        response_ids=ids,
                        model_output=SimpleNamespace(finish_reason="stop"),
                    )
                ]
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
    """A number per token of the rollout, 0 on those that the policy did not write."""
    assigned = []
    group = [
        SimpleNamespace(
            samples=[SimpleNamespace(token_ids=[2, 5, *ids], mask=[False, False, *[True] * len(ids)])],
            reward=0.0,
            assign_advantages=assigned.append,
        )
        for ids in IDS[:2]
    ]
    names = program("score_group(self, group)", credit=credit, tokenizer=Tokenizer())
    asyncio.run(names["score_group"](None, group))
    expected = by_client(set_rewards=[0.0, 0.0, None, None]).token_advantages.to_list()[:2]
    assert assigned == [[0.0, 0.0, *row] for row in expected]
    group[0].samples *= 2
    with pytest.raises(ValueError, match="one sample for each rollout"):
        asyncio.run(names["score_group"](None, group))
