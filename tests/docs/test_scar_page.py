"""SCAR.md is true: its requests are answered, and what its tables say happens."""

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

from creditd.credit.flags import Flag
from creditd.wire.scar_choices import SEGMENTATION_NAMES, SPAN_CREDIT_NAMES
from docs.scar_cases import ALPHA, CASES, KL, OTHER_REWARD, written
from server.model_services import fake, with_models
from server.running import on_service
from services import running_service

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SCAR.md").read_text()
SERVICE = Path(__file__).parent / "scar_service.py"
SCAR = "/v1/credit/scar"
VOLATILE = {"request_id", "queue_s", "engine_s", "service"}
"""Fields of an answer that differ from one request, or one release, to the next."""
SIGMAS = {
    "v(P) − α·v(∅)": lambda item: item["utility_grand"] - ALPHA * item["utility_empty"],
    "v(P)": lambda item: item["utility_grand"],
}


def table(*header):
    """Rows of the table with a header, as lists of cells."""
    line = f"| {' | '.join(header)} |\n"
    assert PAGE.count(line) == 1
    lines = PAGE.split(line)[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in lines]


HAPPENINGS = table("a completion with", "what happens", "units", "unit values", "flags", "Σ")


def blocks():
    """All fenced blocks, in order: their languages and texts."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def curls():
    """Each line to paste, and the answer that stands below it, or None."""
    shown = {first: json.loads(second) for (_, first), (kind, second) in pairwise(blocks()) if kind == "json"}
    return [(text, shown.get(text)) for kind, text in blocks() if kind == "sh" and text.startswith("curl")]


def ask(body, engine=None):
    """What a service with a scorer says to a request."""
    return on_service(lambda service: service.post(body, SCAR), with_models(*filter(None, [engine])))


def stable(document):
    """A document without what differs from run to run."""
    if isinstance(document, dict):
        return {key: stable(value) for key, value in document.items() if key not in VOLATILE}
    return [stable(entry) for entry in document] if isinstance(document, list) else document


def test_each_row_is_a_case():
    """No row is without a case, no case without a row, and none stands twice."""
    names = [row[0] for row in HAPPENINGS]
    assert len(names) == len(set(names))
    assert set(names) == set(CASES)


@pytest.mark.parametrize("row", HAPPENINGS, ids=lambda row: row[0])
def test_what_a_row_says_happens(row):
    """Units, values, flags and the sum of token rewards are those of the row, and so is what it says in words."""
    name, _, units, values, flags, total = row
    case = CASES[name]
    response = ask(case.body, case.engine())
    assert response.status_code == 200, response.text
    items = response.json()["items"]
    first, last = items[0], items[-1]
    case.also(items)
    # A completion that failed has no flags of its own: those are its group's.
    found = first["flags"] if first["status"] == "ok" else last["flags"]
    assert " ".join(f"`{flag}`" for flag in found) == flags
    if first["status"] == "error":
        assert (units, values, total) == ("error", "error", "error")
        assert "token_rewards" not in first
        return
    assert len(first["units"]) == int(units)
    if first["unit_values"] is None:
        assert values == "none"
    else:
        assert (values, len(first["unit_values"])) == ("all", int(units))
    trainable = sum(case.mask)
    rewards = math.fsum(first["token_rewards"])
    assert all(reward == 0.0 for reward, own in zip(first["token_rewards"], case.mask, strict=True) if not own)
    if not trainable:
        assert (rewards, total) == (0.0, "0")
        return
    assert rewards == pytest.approx(trainable * KL + OTHER_REWARD + SIGMAS[total](first), abs=1e-12)
    assert rewards == pytest.approx(first["ledger"]["total"], abs=1e-12)


def test_the_table_has_flags_that_exist():
    """Each flag in it is one of the wire's."""
    flags = {flag for row in HAPPENINGS for flag in re.findall(r"`(\w+)`", row[4])}
    assert flags <= {flag.name.lower() for flag in Flag}


def of_kind(kind):
    """Blocks of a kind, with the output that stands below them, or None."""
    everything = [*blocks(), ("", "")]
    pairs = [(text, below if after == "text" else None) for (_, text), (after, below) in pairwise(everything)]
    return [pair for pair, (language, text) in zip(pairs, blocks(), strict=True) if kind_of(language, text) == kind]


def kind_of(language, text):
    """How a block is tested."""
    if language in {"json", "text"}:
        return "output"
    if language == "sh":
        first = text.split()[0]
        return first if first in {"curl", "make"} else "command"
    return "trainer" if "trl" in text or "import torch" in text else "program"


def test_every_block_is_tested():
    """Each block is a line to paste, a target of make, a program, a command, what a trainer runs, or its output."""
    languages = {language for language, _ in blocks()}
    assert languages <= {"json", "text", "sh", "python"}
    assert len(curls()) + len(of_kind("make")) + len(of_kind("command")) == sum(kind == "sh" for kind, _ in blocks())
    below = [after for (_, _), (after, _) in pairwise(blocks())]
    outputs = sum(kind in {"json", "text"} for kind, _ in blocks())
    assert outputs == sum(after in {"json", "text"} for after in below)  # none begins the page
    trained = any("SCAR.md" in path.read_text() for path in (ROOT / "tests" / "adapters").glob("test_*.py"))
    assert trained or not of_kind("trainer")


def test_targets_of_make_exist():
    """Those in blocks and those in sentences; nothing is run."""
    for target in re.findall(r"\bmake ([a-z]+-[a-z-]+)", PAGE):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("block", [*of_kind("program"), *of_kind("command")], ids=lambda block: block[0].split("\n")[0])
def test_programs_and_commands_run(block, tmp_path):
    """Beside the service of the page; and print what stands below them."""
    text, printed = block
    with running_service(script=SERVICE, directory=tmp_path) as url:
        text = text.replace("http://127.0.0.1:8400", url)
        command = [sys.executable, "-W", "error", "-c", text]
        if block in of_kind("command"):
            text = text.replace(".venv/bin/creditd", "creditd")
            command = ["bash", "-c", re.sub(r"(?m)^creditd\b", f"{shlex.quote(sys.executable)} -m creditd.cli", text)]
        environment = {**os.environ, "CREDITD_URL": url}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr
    assert printed is None or done.stdout == printed


@pytest.mark.slow
@pytest.mark.parametrize(("line", "answer"), curls())
def test_lines_to_paste_are_answered(line, answer, tmp_path):
    """With the toy that the page describes; and with the answer that stands below them."""
    with running_service(script=SERVICE, directory=tmp_path) as url:
        words = shlex.split(line.replace("http://127.0.0.1:8400", url))
        headers = dict([words[words.index("-H") + 1].split(": ", 1)])
        response = httpx.post(words[2], headers=headers, content=words[words.index("-d") + 1])
    assert response.status_code == 200, response.text
    assert all(item["status"] in {"ok", "open"} for item in response.json()["items"])
    if answer is not None:
        assert stable(response.json()) == stable(answer)


def test_segmentations_are_those_of_the_wire():
    """Each has a row, and cuts as the row says."""
    rows = {row[0].split("`")[1]: row[1] for row in table("`segmentation`", "a unit ends")}
    assert set(rows) == set(SEGMENTATION_NAMES)
    text = "It is 3.5, or 1,000; no?!\nLet us see. And now"
    pieces = {
        "span": ["It is 3.5,", " or 1,000;", " no?!", "\nLet us see.", " And now"],
        "sentence": ["It is 3.5, or 1,000; no?!\n", "Let us see.", " And now"],
        "lines": ["It is 3.5, or 1,000; no?!\n", "Let us see. And now"],
        "regex": ["It is 3.5, or", " 1,000; no?!\nLet us see. And now"],
    }
    for name, expected in pieces.items():
        chosen = {"type": name, "pattern": r"\bor\b"} if name == "regex" else {"type": name}
        assert pieces_of(text, segmentation=chosen) == expected
    words = written(text)
    by_tokens = pieces_of(text, segmentation={"type": "token"}, token_offsets=words["token_offsets"])
    assert by_tokens == [text[start:stop] for start, stop in words["token_offsets"]]
    halves = [[0, 4], [4, len(words["token_offsets"])]]
    given = pieces_of(text, segmentation={"type": "given"}, token_offsets=words["token_offsets"], units=halves)
    assert given == ["It is 3.5, or", text[len("It is 3.5, or") :]]


def pieces_of(text, *, segmentation, **item):
    """The units of a text."""
    response = ask(
        {"model": "rm", "items": [{"prompt": "?", "completion": text, **item}], "segmentation": segmentation}
    )
    assert response.status_code == 200, response.text
    return [text[start:stop] for start, stop in response.json()["items"][0]["unit_characters"]]


@pytest.mark.parametrize("row", table("`absent`", "a run of absent units is"), ids=lambda row: row[0])
def test_absent_units_are_as_the_row_says(row):
    """Two absent units between two others are read as the row says."""
    chosen = json.loads(re.findall(r"`(\{.*?\})`", row[0])[0])
    read = []

    def score(_, text):
        read.append(text)
        return float(len(text))

    item = {"prompt": "?", "completion": "a, b, c, d"}
    assert ask({"model": "rm", "items": [item], "absent": chosen}, fake(score=score)).status_code == 200
    filler = {"left out": "", "one blank": " "}.get(row[1], chosen.get("text"))
    assert {f"a,{filler} d", filler} <= set(read)


def test_absent_units_may_be_a_token_of_the_model():
    """By its number: of the scorer of these tests, a code point."""
    item = {"prompt": "?", "completion": "a, b"}
    body = {"model": "rm", "items": [item], "absent": {"type": "mask_token", "id": ord("#")}}
    found = ask(body, fake(score=lambda _, text: float(text.count("#")))).json()["items"][0]
    assert (found["utility_empty"], found["utility_grand"]) == (1.0, 0.0)


def test_values_are_those_of_the_wire():
    """Each has a row; each is answered, and sums as the row says."""
    rows = [row[0] for row in table("`credit`", "u_j", "when")]
    names = [row.split("`")[1] for row in rows]
    assert names == list(SPAN_CREDIT_NAMES)
    attentive = {"attention": lambda _, units: [float(len(unit)) for unit in units]}
    for name in names:
        engine = type(fake())(fake_score, fake().spec, **attentive)
        item = {"prompt": "?", "completion": "sun, rain, wind"}
        found = ask({"model": "rm", "items": [item], "credit": {"type": name}}, engine).json()["items"][0]
        assert (abs(found["gap"]) > 0.1) == (name == "leave_one_out")


def fake_score(_, text):
    """Not the sum of what units are worth alone."""
    return float(len(set(text))) ** 2


SIZES = (2, 3, 4, 5, 8, 9, 16, 17, 24, 32)
COUNTS = table("n", *map(str, SIZES))


def balanced(n):
    """The formula of the page."""
    m = n.bit_length() - 1
    return (2 * 4**m + 4) // 3 + 2 ** (m + 1) * (n - 2**m)


PLANS = {
    "`shapley`, all coalitions": lambda n: 2**n,
    "`owen`, balanced tree": balanced,
    "`owen`, your `tree`": lambda n: 2**n,  # a chain
    "`shapley`, sampled": lambda _: "at most 64",
    "`prefix`": lambda n: n + 1,
    "`leave_one_out`": lambda n: n + 2,
    "`uniform`": lambda _: 2,
    "`attention`": lambda _: 3,
}
CHOICES = {
    "`shapley`, all coalitions": {"credit": {"type": "shapley"}},
    "`shapley`, sampled": {
        "credit": {"type": "shapley"},
        "estimator": {"type": "permutations", "budget": 64},
    },
    "`owen`, balanced tree": {"credit": {"type": "owen"}},
    "`owen`, your `tree`": {"credit": {"type": "owen"}},
    "`prefix`": {"credit": {"type": "prefix"}},
    "`leave_one_out`": {"credit": {"type": "leave_one_out"}},
    "`uniform`": {"credit": {"type": "uniform"}},
    "`attention`": {"credit": {"type": "attention"}},
}


def evaluations(n, *, tree=None, **options):
    """Different texts that are read for a completion of n units."""
    item = {"prompt": "?", "completion": ", ".join(map(str, range(n)))}
    if tree is not None:
        item["tree"] = tree
    body = {"model": "rm", "items": [item], "segmentation": {"type": "span", "max_units": None}, **options}
    response = ask(body, fake(score=fake_score, attention=lambda _, units: [1.0] * len(units)))
    assert response.status_code == 200, response.text
    assert len(response.json()["items"][0]["units"]) == n
    return response.json()["usage"]["evaluations"]


def fits(found, expected):
    """Whether a number is the one that is expected, or the most that is; a sample leaves little of its budget."""
    most = int(expected.split()[-1])
    return 0.9 * most < found <= most if "most" in expected else found == most


@pytest.mark.parametrize("row", table("value", "evaluations"), ids=lambda row: row[0])
def test_evaluations_are_those_of_the_formulas(row):
    """For eight units."""
    name, n = row[0], 8
    tree = [[0, 1], *([n + k, k + 2] for k in range(n - 2))] if "tree`" in name and "your" in name else None
    assert fits(evaluations(n, tree=tree, **CHOICES[name]), str(PLANS[name](n)))


def test_every_formula_has_its_row():
    """And no row is without one."""
    assert [row[0] for row in table("value", "evaluations")] == list(PLANS)


@pytest.mark.parametrize(("place", "n"), list(enumerate(SIZES, start=1)))
def test_the_table_of_evaluations_is_what_is_read(place, n):
    """Of `auto`, and of Owen values over the balanced tree."""
    counts = {row[0].strip("`"): row[place] for row in COUNTS}
    assert set(counts) == {"auto", "owen"}
    for name, count in counts.items():
        budget = 1024 if name == "owen" else 512
        assert fits(evaluations(n, credit={"type": name}, estimator={"budget": budget}), count)
    assert counts["owen"] == str(balanced(n))


def test_the_counterexample_is_what_the_service_says():
    """The worse text has more to come at its last token by Shapley values, and less by those of prefixes."""
    rows = table("last unit", "v(a, last)", "v(last)", "`shapley` value of the last", "`prefix` value of the last")
    utilities = {"": 0.0, "a,": 0.0}
    for last, together, alone, *_ in rows:
        utilities |= {f"a, {last}": float(together), f" {last}": float(alone)}
    items = [{"prompt": "?", "completion": f"a, {row[0]}"} for row in rows]
    for place, name in ((3, "shapley"), (4, "prefix")):
        engine = fake(score=lambda _, text: utilities[text])
        answer = ask({"model": "rm", "items": items, "credit": {"type": name}}, engine).json()["items"]
        for row, item in zip(rows, answer, strict=True):
            assert item["token_rewards"][-1] == pytest.approx(float(row[place]))
    better, worse = rows
    assert float(better[1]) > float(worse[1])
    assert float(better[3]) < float(worse[3])
    assert float(better[4]) > float(worse[4])


def test_links_lead_somewhere():
    """To files that are there, and to headings of theirs."""
    for path, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", PAGE):
        text = (ROOT / path).read_text(encoding="utf-8", errors="replace") if path else PAGE
        headings = {
            re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
            for line in text.splitlines()
            if line[:1] == "#"
        }
        assert not anchor or anchor in headings
