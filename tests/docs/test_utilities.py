"""The page of utilities is the catalogue, and every request and program on it works."""

import json
import re
import shlex
import textwrap
from pathlib import Path

import pytest

from creditd.cli.__main__ import main
from creditd.client import Client
from creditd.credit.credit_rules import MaxAtK, Mixture
from creditd.credit.set_utilities import NEEDS
from creditd.wire.catalogue import CATALOGUE, Catalogue
from creditd.wire.choices import UTILITY_NAMES
from creditd.wire.v1 import ShapleyRequest, ShapleyResponse
from server.running import SHAPLEY, on_service, post

PAGE = (Path(__file__).parents[2] / "UTILITIES.md").read_text()
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", PAGE, re.DOTALL | re.MULTILINE))
COMMAND = re.compile(r"curl -s localhost:8400(\S+) -H '([^']*)' \\\n\s+-d '([^']*)'")


def test_the_page_is_what_the_command_prints(capsys):
    """UTILITIES.md is the output of `creditd utilities`."""
    assert main(["utilities"]) == 0
    assert capsys.readouterr().out == PAGE


def test_every_utility_has_its_section():
    """The sections, the table, the names of the wire and those of the service are the same."""
    rows = re.findall(r"^\| \[`(\w+)`\]\(#(\w+)\) \|", PAGE, re.MULTILINE)
    assert [name for name, anchor in rows if name == anchor] == list(SECTIONS)
    assert set(SECTIONS) == set(UTILITY_NAMES) == set(NEEDS)

    async def ask(service):
        return [(await service.client.get(f"/v1/{path}")).content for path in ("info", "utilities")]

    info, utilities = on_service(ask)
    assert Catalogue.model_validate_json(utilities) == CATALOGUE
    assert {entry.name for entry in CATALOGUE.utilities} == set(json.loads(info)["utilities"])
    with Client("local:") as client:
        assert set(client.info().utilities) == set(UTILITY_NAMES)


@pytest.mark.parametrize("name", UTILITY_NAMES)
def test_every_request_of_the_page_is_answered(name):
    """The request of each section works when pasted, and asks for the utility of its section."""
    [(path, header, body)] = COMMAND.findall(SECTIONS[name])
    [(_, command)] = re.findall(r"((curl .*?'))\n*$", SECTIONS[name], re.DOTALL)
    assert shlex.split(command.replace("\\\n", " "))[-1] == body
    assert (path, header) == (SHAPLEY, "content-type: application/json")
    assert json.loads(body)["utility"]["type"] == name
    response = post(body)
    assert response.status_code == 200, response.text
    answer = ShapleyResponse.model_validate_json(response.content)
    assert answer.errors == []
    assert all(gap == pytest.approx(0.0, abs=1e-9) for gap in answer.columns.gap)


@pytest.mark.parametrize("entry", CATALOGUE.utilities, ids=lambda entry: entry.name)
def test_the_rules_of_an_entry_are_those_that_it_takes(entry):
    """Every rule answers the example of its size; where all 2^K utilities are looked at, larger sets are refused."""
    columns = entry.example["columns"]
    request = ShapleyRequest.model_validate(entry.example)
    assert request.columns is not None
    sizes = {len(row) for row in columns.get("rewards", [])} or {len(columns.get("row_splits", [0, 0, 2])) and 0}
    size = next(iter(sizes)) or (columns["row_splits"][1] if "row_splits" in columns else 2)
    n_sets = len(columns.get("rewards", [None]))
    named = {"unions": [place % 2 for place in range(size)] * n_sets}
    for credit in (
        *({"type": name} for name in ("shapley", "leave_one_out", "own_reward", "set_reward", "prefix_gain", "owen")),
        {"type": MaxAtK.type, "k": 2},
        {"type": Mixture.type, "weights": [0.5] * size},
    ):
        response = post({**entry.example, "columns": {**columns, **named}, "credit": credit})
        assert response.status_code == 200, response.text
    if entry.name in {"plurality", "log_sum_exp"}:
        assert "by all 2^K utilities" in entry.rules
    else:
        assert entry.rules == "every rule"


def test_the_program_at_the_end_runs(capsys):
    """The Python of the last section runs as it stands and prints exact credits."""
    text = PAGE.partition("In Python:\n\n")[2].partition("\nAll 2^K sets")[0]
    exec(compile(textwrap.dedent(text), "UTILITIES.md", "exec"), {})  # noqa: S102 - the page is ours
    credits_, exact, evaluations = re.match(r"(\[\[.*\]\]) (\w+) (\[.*\])\n", capsys.readouterr().out).groups()
    assert sum(json.loads(credits_)[0]) == pytest.approx(3.0)
    assert (exact, evaluations) == ("True", "[8]")
