"""The user's own reward function: every form in which it may come, and what is said when it returns something else."""

import functools
import json
import math

import numpy as np
import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")

import torch

from adapters.trainers import MARKS, PARSER, score, score_later, scripted, trainer_of
from creditd.adapters.trl import CandidateReward, CreditConfig
from creditd.client import InvalidRequestError, PartialResultError

pytestmark = MARKS
COMPLETIONS = [["one", ";", "two", "<eos>"], ["three", "<eos>"], ["ask", ";", "four", ";", "five", "<eos>"], [";", ";"]]
SIZES = [2, 1, 3, 0]


def trained(tmp_path, reward, **options):
    """Weights after one step with that candidate reward."""
    torch.manual_seed(0)
    credit = CreditConfig(url="local:", record=str(tmp_path / "wire"))
    trainer = trainer_of(
        tmp_path, rewards=reward, credit=credit, max_steps=1, rollout_func=scripted(COMPLETIONS), **options
    )
    trainer.train()
    assert trainer.state.log_history[0]["credit/candidates"] == sum(SIZES) / 4
    return torch.cat([value.flatten() for value in trainer.model.state_dict().values()])


class Object:
    """A reward that is an object."""

    def __call__(self, prompts, candidates, completions, **columns):
        """The function's own."""
        return score(prompts, candidates, completions, **columns)


class Later:
    """A reward that is an object whose call is a coroutine."""

    async def __call__(self, prompts, candidates, completions, **columns):
        """The function's own, later."""
        return score(prompts, candidates, completions, **columns)


async def scaled_later(factor, prompts, candidates, completions, **columns):
    """A coroutine with an argument of its own."""
    rows = score(prompts, candidates, completions, **columns)
    return [[None if reward is None else factor * reward for reward in row] for row in rows]


class Mine(CandidateReward):
    """A reward with a parser of its own."""

    def __init__(self, function):
        super().__init__(function, PARSER)


FORMS = [
    lambda: CandidateReward(score, PARSER),
    lambda: CandidateReward(Object(), PARSER),
    lambda: CandidateReward(lambda *rows, **columns: tuple(map(tuple, score(*rows, **columns))), PARSER),
    lambda: CandidateReward(score_later, PARSER),
    lambda: CandidateReward(Later(), PARSER),
    lambda: CandidateReward(functools.partial(scaled_later, 1.0), PARSER),
    lambda: CandidateReward(functools.partial(Later()), PARSER),
    lambda: Mine(score),
    lambda: Mine(score_later),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Weights after one step with a plain function."""
    return trained(tmp_path_factory.mktemp("plain"), CandidateReward(score, PARSER))


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_a_reward_may_be_anything_that_can_be_called(form, plain, tmp_path):
    """Functions, objects, coroutines, partials of these, and subclasses train alike."""
    assert torch.equal(trained(tmp_path, FORMS[form]()), plain)


@pytest.mark.parametrize("make", [np.array, torch.tensor, tuple], ids=["numpy", "torch", "tuple"])
def test_rows_may_be_arrays(make, tmp_path):
    """A row is any sequence of numbers."""
    trained(tmp_path, CandidateReward(lambda _, rows, *__, **___: [make([0.5] * len(row)) for row in rows], PARSER))


def sized(value):
    """That value for each candidate."""
    return lambda _, rows, *__, **___: [[value] * len(row) for row in rows]


WRONG = {
    "nothing": (lambda *_, **__: None, "mine returned None; expected 8 lists, one per completion"),
    "a number": (lambda *_, **__: 0.5, "mine returned 0.5; expected 8 lists"),
    "a flat list": (lambda prompts, *_, **__: [0.5] * len(prompts), "mine returned 0.5 for completion 0; expected 2"),
    "an empty row": (lambda prompts, *_, **__: [[]] * len(prompts), "mine returned 0 rewards for completion 0; exp"),
    "no row": (lambda prompts, *_, **__: [None] * len(prompts), "mine returned None for completion 0; expected 2 rew"),
    "a string": (lambda *_, **__: "good", "mine returned 'good'; expected 8 lists"),
    "a row of text": (
        lambda _, rows, *__, **___: ["ab"] * len(rows),
        "mine returned 'ab' for completion 0; expected 2",
    ),
    "a mapping": (
        lambda _, rows, *__, **___: dict(enumerate(rows)),
        r"mine returned \{0: \['one', 'two'\].*…; expected 8",
    ),
    "too few rows": (
        lambda _, rows, *__, **___: [[0.5] * len(row) for row in rows][1:],
        "rewards of 7 completions; exp",
    ),
    "a word": (sized("good"), "mine returned 'good' for candidate 0 of completion 0; expected a number or None"),
    "a digit in quotes": (sized("1"), "mine returned '1' for candidate 0 of completion 0; expected a number or None"),
    "a list": (sized([0.5, 0.5]), r"mine returned \[0.5, 0.5\] for candidate 0 of completion 0; expected a number"),
    "a tensor of no axis": (lambda *_, **__: torch.tensor(1.0), r"mine returned tensor\(1.\); expected 8 lists"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_reward_returns_is_checked_by_name(case, tmp_path):
    """The error names the function, the row, what came and what should have."""
    function, said = WRONG[case]
    with pytest.raises(ValueError, match=said):
        trained(tmp_path, CandidateReward(function, PARSER, name="mine"))


def test_one_candidate_too_many_is_named(tmp_path):
    """The row that is wrong is the one that is named."""

    def longer(prompts, candidates, completions, **columns):
        return [
            [*row, 1.0] if place == 2 else row
            for place, row in enumerate(score(prompts, candidates, completions, **columns))
        ]

    with pytest.raises(ValueError, match="longer returned 4 rewards for completion 2; expected 3 rewards"):
        trained(tmp_path, CandidateReward(longer, PARSER))


def test_what_cannot_be_called_is_refused_at_once():
    """What is neither a function nor the id of a model is refused, and the options are closed."""
    for wrong in (None, "", 0.5, ["rm"]):
        with pytest.raises(TypeError, match="as the candidate reward; expected a function, or the id of a reward mod"):
            CandidateReward(wrong, PARSER)
    with pytest.raises(ValueError, match="got turns 'first'; expected one of last, all"):
        CandidateReward(score, PARSER, turns="first")
    with pytest.raises(ValueError, match="got thinking True; expected one of detect, opened, ignored"):
        CandidateReward(score, PARSER, thinking=True)


def test_a_call_of_its_own_that_does_not_wait_is_refused():
    """A subclass with its own call cannot hand a coroutine to TRL."""
    kind = type("Own", (CandidateReward,), {"__call__": lambda *_, **__: []})
    with pytest.raises(TypeError, match="async function for Own"):
        kind(score_later, PARSER)
    kind(score, PARSER)


def test_a_column_called_candidates_is_an_error_in_words(tmp_path):
    """The data cannot use the name under which the function gets what was parsed."""
    with pytest.raises(ValueError, match=r"column `candidates`.* expected another name"):
        trained(tmp_path, CandidateReward(score, PARSER), columns={"candidates": ["x"] * 16})


@pytest.mark.parametrize("policy", ["raise", "mask"])
def test_a_reward_that_is_no_number_is_the_failure_policys(policy, tmp_path):
    """NaN passes as a number and fails its set, as everywhere."""
    reward = CandidateReward(sized(math.nan), PARSER)
    credit = CreditConfig(url="local:", on_failure=policy, record=str(tmp_path / "wire"))
    trainer = trainer_of(tmp_path, rewards=reward, credit=credit, max_steps=1, rollout_func=scripted(COMPLETIONS))
    if policy == "raise":
        with pytest.raises((PartialResultError, InvalidRequestError), match="reward is NaN"):
            trainer.train()
        return
    trainer.train()
    assert trainer.state.log_history[0]["credit/fallbacks"] == 1.0
    (path,) = (tmp_path / "wire").glob("*.json")
    assert "NaN" in json.loads(path.read_text())["request"]


def test_outside_a_trainer_it_says_where_it_works():
    """Called by hand, or by a trainer without credit, it raises in words."""
    with pytest.raises(RuntimeError, match=r"CreditGRPOTrainer, after attach.*, or in a LoopCredit"):
        CandidateReward(score, PARSER)(["ask"], ["one"], [[5, 1]])
