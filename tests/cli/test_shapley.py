import json

import numpy as np
import pytest

from creditd.cli.__main__ import main
from creditd.client import Client
from creditd.wire.catalogue import CATALOGUE

NEEDED = {entry.name: entry for entry in CATALOGUE.utilities}

CANDIDATES = [
    {"reward": 0.9, "label": "42", "topics": ["a", 1], "scores": [0.9, 0.1], "union": "u"},
    {"reward": 0.25, "label": 17, "topics": [], "scores": [0.2, 0.8], "union": "u"},
    {"reward": 0.9, "label": "42", "topics": ["a"], "scores": [0.0, 0.7], "union": 3},
]
SIMILARITIES = [[1.0, 0.5, 0.25], [0.5, 1.0, 0.0], [0.25, 0.0, 1.0]]


@pytest.fixture
def solved(tmp_path, capsys):
    """What the command writes for some lines, and its exit status; nothing is started."""

    def solve(lines, *arguments):
        source, sink = tmp_path / "sets.jsonl", tmp_path / "out.jsonl"
        source.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        status = main(["shapley", str(source), "--quiet", "-o", str(sink), *arguments])
        capsys.readouterr()
        return [json.loads(line) for line in sink.read_text().splitlines()], status

    return solve


def one_set(*rewards, **more):
    """A line of named rewards: numbers become two names, None becomes null for all."""
    rows = [None if r is None else {"good": r, "new/": 1.0 - 2.0 * r} for r in rewards]
    return {"candidates": [{"named_rewards": row} for row in rows], **more}


@pytest.mark.parametrize("name", sorted(set(NEEDED) - {"table"}))
@pytest.mark.parametrize("credit", ["shapley", "owen"])
def test_every_utility_is_solved_from_lines(solved, name, credit):
    """A file of sets with all that is known gives what the client gives for the same sets."""
    utility = NEEDED[name].example["utility"]
    sets = [{"group": 1, "similarities": SIMILARITIES, "candidates": CANDIDATES} for _ in range(2)]
    records, status = solved(sets, "--utility", json.dumps(utility), "--credit", credit)
    assert (status, [record["status"] for record in records]) == (0, ["ok", "ok"])
    with Client("local:") as client:
        expected = client.shapley(sets, utility=utility, credit=credit)
    assert [record["credits"] for record in records] == expected.credits.to_list()
    assert [record["advantages"] for record in records] == expected.advantages.to_list()


@pytest.mark.parametrize(
    ("utility", "field"),
    [("plurality", "label"), ("coverage", "topics"), ("noisy_or", "scores"), ("log_det", "similarities")],
)
def test_a_line_without_a_feature_fails_alone(solved, utility, field):
    """What a utility needs is asked of each line, by its name and its place."""
    lacking = {"similarities": SIMILARITIES, "candidates": [dict(one) for one in CANDIDATES]}
    lacking.get("candidates")[1].pop(field, None)
    lacking.pop(field, None)
    sound = {"similarities": SIMILARITIES, "candidates": CANDIDATES}
    records, status = solved([sound, lacking, sound], "--utility", utility)
    assert (status, [record["status"] for record in records]) == (1, ["ok", "error", "ok"])
    assert field in records[1]["error"]["detail"]


def test_wrong_features_are_named_by_line(solved):
    """Lines whose features cannot be used get their own codes, also when no line can be answered."""
    scores = [[0.5, 0.5], [2.0, 0.5], [float("nan"), 0.5]]
    lines = [{"candidates": [{"scores": row}, {"scores": [0.5, 0.25]}]} for row in scores]
    lines.append({"candidates": [{"scores": [0.5]}]})
    choice = ("--utility", '{"type": "noisy_or", "weights": [1.0, 2.0]}')
    records, _ = solved(lines, *choice)
    codes = [record.get("error", {}).get("code") for record in records]
    assert codes == [None, "invalid_request", "non_finite_value", "shape_mismatch"]
    records, _ = solved(lines[1:], *choice)
    assert [record["error"]["code"] for record in records] == codes[1:]


def test_named_rewards_are_weighed(solved):
    """Names and weights reach the arithmetic, in both orders of adding and normalising."""
    sets = [one_set(0.5, 0.25, group="p"), one_set(0.0, 1.0, None, group="p")]
    for kind in ("sum_then_normalize", "normalize_then_sum"):
        aggregation = {"type": kind, "weights": {"new/": -0.5}}
        records, status = solved(sets, "--aggregation", json.dumps(aggregation))
        assert status == 0
        with Client("local:") as client:
            expected = client.shapley(sets, aggregation=aggregation)
        for row, record in enumerate(records):
            found = np.array([np.nan if value is None else value for value in record["advantages"]])
            assert found.tobytes() == expected.advantages[row].tobytes()
    assert records[1]["credits"][2] is None


PLAIN = {"candidates": [{"reward": 1.0}]}
NULLS = {"candidates": [{"named_rewards": None}]}


@pytest.mark.parametrize(
    ("lines", "bad"),
    [
        ([one_set(1.0), PLAIN, one_set(0.5)], {2: "those of line 1"}),
        ([PLAIN, one_set(1.0), PLAIN], {2: "those of line 1"}),
        ([one_set(1.0), {"candidates": [{"named_rewards": {"good": 1.0}}]}], {2: "those of line 1"}),
        ([NULLS, one_set(1.0), NULLS], {}),
        ([NULLS, PLAIN], {}),
        ([NULLS, NULLS], {}),
        ([{"candidates": []}, one_set(1.0), {"candidates": []}], {}),
        (
            [
                {"candidates": [{"named_rewards": {"a": 1.0}}, {"named_rewards": {"b": 1.0}}]},
                one_set(1.0),
            ],
            {1: "others of this line"},
        ),
        ([{"candidates": [{"named_rewards": {}}]}, one_set(1.0)], {1: "others of this line"}),
        ([{"candidates": [{"named_rewards": {"a": 1.0}}, {"reward": 1.0}]}, PLAIN], {1: "others of this line"}),
        ([{"candidates": [{"named_rewards": {"a": 1.0}, "reward": 1.0}]}, PLAIN], {1: "some named_rewards"}),
        ([one_set(1.0), "", "{", one_set(2.0)], {3: "JSON"}),
    ],
)
def test_lines_whose_rewards_are_named_otherwise_are_bad_lines(solved, lines, bad):
    """The first line that has rewards tells the names; a line of nulls, or of nobody, tells none."""
    records, status = solved(lines)
    failed = {record["line"]: record["error"]["detail"] for record in records if record["status"] == "error"}
    assert set(failed) == set(bad)
    for number, words in bad.items():
        assert words in failed[number]
    assert status == int(bool(bad))


def test_a_batch_of_nothing_but_bad_named_rewards_names_its_lines(solved):
    """When no line can be answered, each has its own code."""
    records, _ = solved([one_set(float("nan"))] * 12 + [one_set(1e101)])
    assert [record["error"]["code"] for record in records] == ["non_finite_value"] * 12 + ["invalid_request"]


def test_a_weight_of_a_name_that_is_not_there_is_said(solved):
    """Weights are checked against the names of the file."""
    records, status = solved([one_set(1.0)], "--aggregation", '{"type": "normalize_then_sum", "weights": {"x": 1}}')
    assert (status, [record["status"] for record in records]) == (1, ["error"])
