"""OAR.md is true: its requests are answered, and what its tables say happens."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from creditd.credit.answer_parsers import ANSWER_PARSERS, ParserOptions, find_reasoning
from creditd.credit.flags import Flag
from creditd.server.settings import load_settings
from creditd.wire.oar_choices import PARSER_NAMES, PROBE_NAMES, SENSITIVITY_NAMES, ReshapeChoice
from docs.oar_cases import ADVANTAGE, CASES, LONGEST, VOCABULARY, measure
from server.oar_calls import BEFORE_MASS, IMPORTANCE, WORKED_WEIGHTS, ask, policy, with_policies
from server.running import OAR, on_service
from services import running_service

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "OAR.md").read_text()
SERVICE = Path(__file__).parent / "scar_service.py"
VOLATILE = {"request_id", "queue_s", "engine_s", "service"}
"""Fields of an answer that differ from one request, or one release, to the next."""
DIGITS = 1e-6


def table(*header):
    """Rows of the table with a header, as lists of cells."""
    line = f"| {' | '.join(header)} |\n"
    assert PAGE.count(line) == 1
    lines = PAGE.split(line)[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in lines]


HAPPENINGS = table("a completion with", "what happens", "reweighted", "flags", "Σ Â")


def blocks():
    """All fenced blocks, in order: their languages and texts."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def curls():
    """Each line to paste, and the answer that stands below it or below the sentence after it, or None."""
    shown = {first: json.loads(second) for (_, first), (kind, second) in pairwise(blocks()) if kind == "json"}
    return [(text, shown.get(text)) for kind, text in blocks() if kind == "sh" and text.startswith("curl")]


def programs():
    """Programs that train nothing, each with the output that stands below it."""
    everything = [*blocks(), ("", "")]
    return [
        (text, below)
        for (kind, text), (after, below) in pairwise(everything)
        if kind == "python" and "import torch" not in text and "trl" not in text and after == "text"
    ]


def stable(document):
    """A document without what differs from run to run."""
    if isinstance(document, dict):
        return {key: stable(value) for key, value in document.items() if key not in VOLATILE}
    return [stable(entry) for entry in document] if isinstance(document, list) else document


def resources():
    """A service with the policy of the cases."""
    return with_policies(policy(measured=measure, max_tokens=LONGEST, vocabulary=VOCABULARY))


def test_each_row_is_a_case():
    """No row is without a case, no case without a row, and none stands twice."""
    names = [row[0] for row in HAPPENINGS]
    assert len(names) == len(set(names))
    assert set(names) == set(CASES)


@pytest.mark.parametrize("row", HAPPENINGS, ids=lambda row: row[0])
def test_what_a_row_says_happens(row):
    """Reweighted tokens, flags and the sum of token advantages are those of the row."""
    name, _, reweighted, flags, total = row
    case = CASES[name]
    answer = ask(case.body, resources=resources())
    assert "items" in answer, answer
    items = answer["items"]
    first, last = items[0], items[-1]
    case.also(items)
    # A completion that failed has no flags of its own: those are its group's.
    found = (
        first["flags"] if first["status"] == "ok" else [flag for flag in last["flags"] if flag == "group_incomplete"]
    )
    assert " ".join(f"`{flag}`" for flag in found) == flags
    if first["status"] == "error":
        assert (reweighted, total) == ("error", "error")
        return
    assert first["n_reweighted"] == int(reweighted)
    assert first["advantage"] == (0.0 if case.alone else ADVANTAGE)
    expected = {"T·A": sum(case.mask) * first["advantage"], "0": 0.0}[total]
    assert math.fsum(first["token_advantages"]) == pytest.approx(expected, abs=1e-12)
    own = zip(first["token_advantages"], case.mask, strict=True)
    assert all(value == 0.0 for value, kept in own if not kept)


def test_negative_sensitivities_count_as_zero():
    """Weights are those of the positive part."""
    case = CASES["negative sensitivities"]
    positive = {"items": [{"sensitivities": [0.0, 0.0, 2.0, 4.0], "advantage": 1.0}], "sensitivity": {"type": "given"}}
    found = ask(case.body)["items"][0]["weights"]
    assert found == ask(positive)["items"][0]["weights"]
    assert found[0] == found[1] < found[2] < found[3]


def test_the_table_has_flags_that_exist():
    """Each flag in it is one of the wire's."""
    flags = {flag for row in HAPPENINGS for flag in re.findall(r"`(\w+)`", row[3])}
    assert flags <= {flag.name.lower() for flag in Flag}


def test_the_formula_is_what_the_service_computes():
    """With the constants that stand in it, by hand, on the worked numbers."""
    constants = [float(number) for number in re.findall(r"q = ([\d.]+)|\), ([\d.]+)\)|β = (\d)", PAGE)[0] if number]
    assert constants == [ReshapeChoice().quantile]
    levels = [math.log1p(max(value, 0.0)) for value in IMPORTANCE]
    places = [(level - min(levels)) / (max(levels) - min(levels)) for level in levels]
    threshold = sorted(places)[1]  # a quarter of the way along five numbers
    weights = [
        max(x / (threshold + 1e-8), 0.1) if x < threshold else 1 + (x - threshold) / (1 - threshold + 1e-8)
        for x in places
    ]
    assert weights == pytest.approx(BEFORE_MASS, abs=DIGITS)
    scaled = [weight * len(weights) / sum(weights) for weight in weights]
    assert scaled == pytest.approx(WORKED_WEIGHTS, abs=DIGITS)
    for options, expected in (({}, scaled), ({"reshape": {"preserve_mass": False}}, weights)):
        body = {"items": [{"sensitivities": list(IMPORTANCE), "advantage": 1.0}], "sensitivity": {"type": "given"}}
        assert ask({**body, **options})["items"][0]["weights"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (("`sensitivity`", "I_t", "passes for a completion"), SENSITIVITY_NAMES),
        (("`probe`", "what of the answer is watched", "the measure"), PROBE_NAMES),
        (("`parser`", "the answer is", "the reasoning is"), PARSER_NAMES),
    ],
)
def test_choices_are_those_of_the_wire(header, names):
    """Each has a row, the default first, and is answered."""
    rows = [json.loads(re.findall(r"`(\{.*?\})`", row[0])[0]) for row in table(*header)]
    assert {row["type"] for row in rows} == set(names)
    defaults = {"`sensitivity`": "gradient", "`probe`": "answer_mean", "`parser`": "given"}
    assert rows[0] == {"type": defaults[header[0]]}
    assert ["(default)" in row[0] for row in table(*header)] == [True] + [False] * (len(rows) - 1)
    for row in rows:
        given = row["type"] == "given" and header[0] == "`sensitivity`"
        text = "so\n<think>a b</think> <answer>7</answer> #### 7 \\boxed{7}"
        item = {"advantage": 1.0, "completion_ids": list(map(ord, text)), "prompt_ids": [1]}
        if header[0] != "`parser`":
            item |= {"answer": [3, 4]}
        if given:
            item |= {"sensitivities": [1.0] * len(text)}
        body = {"model": None if given else "policy", "items": [item], header[0].strip("`"): row}
        if header[0] == "`parser`" and row["type"] == "given":
            item |= {"answer": [3, 4]}
        assert ask(body)["items"][0]["answer"] is not None


CUT = {
    "tags": ("<think>a b</think> so <answer> 7 </answer>.", "a b", "7"),
    "hashes": ("a b\n#### 7 \nc", "a b\n", "7"),
    "boxed": ("a b \\boxed{f{7}} c", "a b ", "f{7}"),
    "last_line": ("a b\n7\n\n", "a b\n", "7"),
}


@pytest.mark.parametrize("name", ANSWER_PARSERS)
def test_parsers_cut_as_their_rows_say(name):
    """One token per character."""
    text, reasoning, answer = CUT[name]
    offsets = [[place, place + 1] for place in range(len(text))]
    first, second = find_reasoning(text, offsets, ParserOptions(name))
    assert text[slice(*second)] == answer
    assert text[slice(*first)].rstrip("\n") == reasoning.rstrip("\n")


def test_reasoning_may_begin_in_the_prompt():
    """The closing tag alone ends it."""
    text = "a b</think> so <answer>7</answer>"
    offsets = [[place, place + 1] for place in range(len(text))]
    first, _ = find_reasoning(text, offsets, ParserOptions("tags"))
    assert text[slice(*first)] == "a b"


def refused(body, *engines, settings=None, headers=None):
    """The refusal of a request."""
    response = on_service(
        lambda service: service.post(body, OAR, **(headers or {})), with_policies(*engines, **(settings or {}))
    )
    return f"{response.status_code} `{response.json()['code']}`"


ITEM = {"prompt_ids": [1], "completion_ids": [1, 2, 3], "answer": [2, 3], "advantage": 1.0}


def announced():
    """A policy that waits for weights."""
    engine = policy()
    engine.announce_weights("v1")
    return engine


def without_padding():
    """The refusal by policies that have nothing to put in a token's place."""
    body = {"model": "policy", "sensitivity": {"type": "perturbation"}, "items": [ITEM]}
    (refusal,) = {refused(body, policy(pad_id=pad)) for pad in (None, 3)}
    return refusal


REFUSALS = {
    "for a policy that the service does not have": lambda: refused({"model": "other", "items": [ITEM]}),
    "for weights that the policy never had and nobody announced": lambda: refused(
        {"model": "policy", "weight_version": "v9", "items": [ITEM]}
    ),
    'for weights that were announced, with `"if_not_ready": "fail"`': lambda: refused(
        {"model": "policy", "weight_version": "v1", "if_not_ready": "fail", "items": [ITEM]}, announced()
    ),
    "for weights that were announced, and did not come before its deadline": lambda: refused(
        {"model": "policy", "weight_version": "v1", "items": [ITEM]},
        announced(),
        headers={"X-Request-Timeout-Ms": "200"},
    ),
    "for `perturbation` without a `token_id`, of a policy that has no padding token, or one that ends texts": (
        without_padding
    ),
    "that would have the policy read more tokens than `max_policy_tokens` of the settings": lambda: refused(
        {"model": "policy", "items": [ITEM]}, settings={"max_policy_tokens": 1}
    ),
}


def test_each_refusal_is_a_case():
    """No row is without one, and none without a row."""
    assert [row[0] for row in table("a request", "is refused with")] == list(REFUSALS)


@pytest.mark.parametrize("row", table("a request", "is refused with"), ids=lambda row: row[0])
def test_a_request_is_refused_as_its_row_says(row):
    """With the status and the code."""
    assert row[1].startswith(REFUSALS[row[0]]())


@pytest.mark.parametrize("row", table("`sensitivity`", "passes, `usage.evaluations`", "tokens, `usage.tokens_naive`"))
def test_costs_are_those_of_the_formulas(row):
    """For three tokens of prompt, and four of reasoning before an answer of two."""
    name, passes, _ = row
    choice = {"type": name.strip("`"), **({"noise_samples": 5} if name == "`gradient`" else {})}
    item = {**ITEM, "prompt_ids": [1, 2, 3], "completion_ids": [1, 2, 3, 4, 5, 6, 7], "answer": [4, 6]}
    usage = ask({"model": "policy", "sensitivity": choice, "items": [item], "dry_run": True})["usage"]
    expected = {"1 + `noise_samples`": 6, "1 + L": 5}[passes]
    assert usage["evaluations"] == expected
    assert usage["tokens_naive"] == expected * (3 + 5)


def test_every_block_is_tested():
    """Each block is a line to paste, a target of make, a program, what a trainer runs, or its output."""
    kinds = {"curl": 0, "make": 0}
    for kind, text in blocks():
        assert kind in {"json", "text", "sh", "python", "toml"}
        if kind == "sh":
            kinds[text.split()[0]] += 1
    assert kinds["curl"] == len(curls())
    trained = [text for kind, text in blocks() if kind == "python" and ("import torch" in text or "trl" in text)]
    assert len(programs()) + len(trained) == sum(kind == "python" for kind, _ in blocks())
    outputs = [after for (before, _), (after, _) in pairwise(blocks()) if before in {"sh", "python"}]
    assert sum(kind in {"json", "text"} for kind in outputs) == sum(kind in {"json", "text"} for kind, _ in blocks())
    if trained:
        assert any("OAR.md" in path.read_text() for path in (ROOT / "tests" / "adapters").glob("test_*.py"))


def test_the_settings_register_a_policy(tmp_path):
    """The file is read as it stands, and names the policy that the lines and programs name."""
    (text,) = (text for kind, text in blocks() if kind == "toml")
    (tmp_path / "service.toml").write_text(text)
    (model,) = load_settings(tmp_path / "service.toml").models
    assert (model.id, model.kind) == ("policy", "policy")
    assert PAGE.count('model="policy"') >= 3


def test_targets_of_make_exist():
    """Those in blocks and those in sentences; nothing is run."""
    for target in set(re.findall(r"\bmake ([a-z]+-[a-z-]+)", PAGE)):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("program", programs(), ids=lambda program: program[0].split("\n")[-2])
def test_programs_run(program, tmp_path):
    """Beside the service of the page; and print what stands below them."""
    text, printed = program
    with running_service(script=SERVICE, directory=tmp_path) as url:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", text],
            env={**os.environ, "CREDITD_URL": url},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed


@pytest.mark.slow
@pytest.mark.parametrize(("line", "answer"), curls())
def test_lines_to_paste_are_answered(line, answer, tmp_path):
    """With the toy that the page describes; and with the answer that stands below them."""
    with running_service(script=SERVICE, directory=tmp_path) as url:
        words = shlex.split(line.replace("http://127.0.0.1:8400", url))
        headers = dict([words[words.index("-H") + 1].split(": ", 1)])
        response = httpx.post(words[2], headers=headers, content=words[words.index("-d") + 1])
    assert response.status_code == 200, response.text
    assert all(item["status"] == "ok" for item in response.json()["items"])
    if answer is not None:
        assert stable(response.json()) == stable(answer)
