"""COMPOSE.md is true: its request is answered, its programs print what stands below, its tables name what there is."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest

from creditd.credit.composed_items import CandidateLedger, SetLedger, UnitLedger
from creditd.credit.flags import Flag
from creditd.wire.compose import ComposeCandidate, ComposeRequest, ComposeSet
from server.running import COMPOSE, on_service

PAGE = (Path(__file__).parents[2] / "COMPOSE.md").read_text(encoding="utf-8")
DIGITS = 6
"""Of the numbers on the page."""


def blocks():
    """All fenced blocks, in order: their languages and texts."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def table(*header):
    """Rows of the table with a header, as lists of cells."""
    line = f"| {' | '.join(header)} |\n"
    assert PAGE.count(line) == 1
    lines = PAGE.split(line)[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in lines]


def shortened(value):
    """A document with the digits of the page."""
    if isinstance(value, float):
        return round(value, DIGITS) + 0.0
    if isinstance(value, dict):
        return {key: shortened(entry) for key, entry in value.items()}
    return [shortened(entry) for entry in value] if isinstance(value, list) else value


def programs():
    """Each program, and what it prints."""
    return [(text, below) for (kind, text), (_, below) in pairwise(blocks()) if kind == "python"]


def test_every_block_is_tested():
    """A line to paste with its answer, and programs with their output."""
    assert [kind for kind, _ in blocks()] == ["sh", "json", "python", "text", "python", "text"]


def test_the_request_is_answered_as_the_page_says():
    """The first of its sets, to the digits that are shown."""
    (curl, shown) = (text for kind, text in blocks() if kind in {"sh", "json"})
    body = json.loads(shlex.split(curl)[-1])
    response = on_service(lambda service: service.post(body, COMPOSE))
    assert response.status_code == 200, response.text
    assert shortened(response.json()["sets"][0]) == json.loads(shown)


@pytest.mark.parametrize(("text", "printed"), programs(), ids=["client", "spans"])
def test_programs_print_what_stands_below_them(text, printed):
    """In a process of their own, without a warning."""
    command = [sys.executable, "-W", "error", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed


def test_choices_are_those_of_the_schema():
    """Each row of the table of choices is a request, with the default that it says."""
    rows = table("`inside`", "a token of unit j gets", "what is kept")
    for row, default in zip(rows, (1.0, 0.5, None), strict=True):
        choice = json.loads(re.search(r"\{.*\}", row[0]).group().replace("{…}", "{}"))
        candidate = {"reward": 1.0, "span": None}
        request = ComposeRequest.model_validate(
            {"sets": [{"n_tokens": 0, "candidates": [candidate]}], "inside": choice}
        )
        assert request.inside.type == choice["type"]
        if default is not None:
            assert (type(request.inside)(type=choice["type"]).share, choice["share"]) == (default, default)


def test_fields_are_those_of_the_schema():
    """What a candidate may bring stands in the schema, and nothing that looks inside is missing."""
    rows = table("a candidate brings", "its units get", "needs")
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])} - {"span"}
    assert named <= set(ComposeCandidate.model_fields)
    assert named == {"units", "unit_values", "utilities", "tree", "sensitivities"}
    for name in ("completion_mask", "set_advantage", "advantage_slope", "inside"):
        assert name in ComposeSet.model_fields
        assert f"`{name}`" in PAGE


def test_entries_are_those_of_the_ledger():
    """Each entry that the table explains is one of its level."""
    kinds = {"set": SetLedger, "candidate": CandidateLedger, "unit": UnitLedger}
    for level, entries, _ in table("level", "entry", "meaning"):
        names = {field.name for field in fields(kinds[level])}
        assert set(re.findall(r"`(\w+)`", entries)) <= names


def test_flags_exist():
    """Those of the table, by their names."""
    named = [re.findall(r"`(\w+)`", row[0])[0] for row in table("flag", "meaning here")]
    assert set(named) <= {flag.name.lower() for flag in Flag}
