"""TRL.md is true in what needs no TRL: options, policies, releases. tests/adapters/test_trl_page.py has the rest."""

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from creditd.adapters.candidate_reward import CandidateReward
from creditd.adapters.compatibility import TRL
from creditd.adapters.credit_config import CreditConfig, FailurePolicy
from creditd.adapters.rollouts import MOST_CANDIDATES
from creditd.adapters.span_reward import SpanReward
from creditd.adapters.span_rollouts import _OF_CANDIDATES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "TRL.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def tables(*header):
    """Rows of each table with a header, as lists of cells."""
    parts = PAGE.split(f"| {' | '.join(header)} |\n")[1:]
    return [
        [[cell.strip() for cell in row.split("|")[1:-1]] for row in part.split("\n\n")[0].splitlines()[1:]]
        for part in parts
    ]


def value(cell):
    """What a cell says the default is."""
    return inspect.Parameter.empty if cell == "required" else ast.literal_eval(cell.strip("`"))


def test_every_block_is_tested():
    """One program, which tests/adapters/test_trl_page.py runs."""
    assert re.findall(r"^```(\w+)$", PAGE, re.MULTILINE) == ["python"]


@pytest.mark.parametrize(("place", "kind"), [(0, CandidateReward), (1, SpanReward)])
def test_the_arguments_of_a_reward_are_those_of_the_code(place, kind):
    """In their order, with their defaults."""
    rows = tables("argument", "default", "what it says")[place]
    known = inspect.signature(kind).parameters.values()
    assert [(name.strip("`"), value(default)) for name, default, _ in rows] == [
        (one.name, one.default) for one in known
    ]


def test_the_configuration_is_that_of_the_code():
    """Each field once, with its default and the kinds of reward that may set it."""
    (rows,) = tables("field", "default", "with", "what it says")
    defaults = CreditConfig()
    assert [(name.strip("`"), value(default)) for name, default, *_ in rows] == [
        (field.name, getattr(defaults, field.name)) for field in fields(CreditConfig)
    ]
    assert {name.strip("`") for name, _, kinds, _ in rows if kinds == "candidates"} == set(_OF_CANDIDATES)
    assert f"None: {MOST_CANDIDATES} |" in PAGE


def test_failure_policies_are_those_of_the_code():
    """Each has a row."""
    (rows,) = tables("`on_failure`", "where there is no credit a token gets")
    assert [name.strip("`") for name, _ in rows] == list(get_args(FailurePolicy))


def test_the_releases_are_those_that_are_tested():
    """As the lane installs them, and as the adapter knows them."""
    oldest, newest = (re.search(rf"^TRL_{name} := (.*)$", MAKEFILE, re.MULTILINE)[1] for name in ("OLDEST", "NEWEST"))
    assert f"Tested with TRL {oldest} and {newest}," in PAGE
    assert oldest == ".".join(map(str, TRL.oldest))
    assert newest.startswith(".".join(map(str, TRL.newest)))
    assert TRL.is_tested(newest)


def test_the_page_is_linked():
    """From where one looks for it."""
    for page in ("README.md", "TRAINERS.md", "LOOPS.md"):
        assert "[TRL.md](TRL.md)" in (ROOT / page).read_text(encoding="utf-8")
    for page, title in re.findall(r"\((\w+\.md)#([\w-]+)\)", PAGE):
        titles = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert title in {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in titles}
