"""The benchmark of SCAR measures what its page says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import THREAD_VARIABLES
from benchmarks.page import page

ROOT = Path(__file__).parents[2]
IN_PROCESS, HTTP, WARM = "creditd, in process", "creditd, HTTP", "creditd, HTTP, remembered"
LOOPS = {"shap, its own batches", "shap, its best batches"}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What a quick run writes."""
    out = tmp_path_factory.mktemp("scar") / "scar.json"
    path = {"PYTHONPATH": os.pathsep.join(("service", "client", "tests"))}
    subprocess.run(
        [sys.executable, "-m", "benchmarks.scar", "--quick", "--out", str(out)],
        check=True, cwd=ROOT, env=os.environ | path | dict.fromkeys(THREAD_VARIABLES, "1"), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.models
def test_both_sides_have_the_same_values(report):
    """Owen values of the loop, in process and over HTTP agree before a time counts; what is remembered is the same."""
    (cell,) = report["cells"]
    assert set(cell["wall"]) == set(cell["processor"]) == LOOPS | {IN_PROCESS, HTTP, WARM}
    assert max(cell["differences"].values()) <= cell["allowed_difference"] == 1e-4
    for found in (*cell["wall"].values(), *cell["processor"].values()):
        assert found["repeats"] == report["rounds"]
    assert all(found["lower_quartile_us"] > 0 for found in cell["wall"].values())


@pytest.mark.slow
@pytest.mark.models
def test_texts_and_tokens_are_counted_on_both_sides(report):
    """The loop reads v(∅) of each completion, creditd that of the prompt once, and nothing when it is asked again."""
    (cell,) = report["cells"]
    assert cell["evaluations_of_the_loop"] == cell["completions"] * 12
    assert cell["evaluations"] == cell["evaluations_of_the_loop"] - (cell["completions"] - 1)
    assert cell["tokens_computed"] < cell["tokens_naive"] <= min(cell["tokens_padded"].values())
    assert cell["ideal_ratio"] == cell["tokens_naive"] / cell["tokens_computed"]
    assert cell["remembered"] == {"evaluations": 0, "from_cache": cell["evaluations"]}
    of_fastest = {name: found["of_fastest"]["of_medians"] for name, found in cell["speed_ups"].items()}
    assert cell["speed_ups"][HTTP]["share_of_ideal"] == pytest.approx(of_fastest[HTTP] / cell["ideal_ratio"])


@pytest.mark.slow
@pytest.mark.models
def test_larger_requests_have_their_costs(report):
    """A long completion is merged to the units that are allowed; a request of many completions counts all of them."""
    long, many = report["costs"]
    assert (long["tokens"], long["units"], long["flags"]) == (240, 24, ["units_merged"])
    assert (long["evaluations"], long["method"]) == (428, "owen_tree")
    assert (many["completions"], many["units"], many["flags"]) == (8, 5, [])
    assert many["evaluations"] == 8 * 19 + 1
    assert many["method"] == "owen_tree"


@pytest.mark.slow
@pytest.mark.models
def test_the_page_has_the_figures(report, tmp_path):
    """A section with every way, the share of the ideal, and whether what was asked for is kept."""
    (tmp_path / "machine").mkdir()
    report["cells"][0]["speed_ups"][HTTP]["of_fastest"]["of_medians"] = 4.9
    report["cells"][0]["speed_ups"][IN_PROCESS]["of_fastest"]["of_medians"] = 5.0
    (tmp_path / "machine" / "scar.json").write_text(json.dumps(report), encoding="utf-8")
    made = page(tmp_path)
    assert "### SCAR against a loop over shap" in made
    assert f"5×; {IN_PROCESS} kept, {HTTP} missed." in made
    assert "| a completion of 240 tokens | 24 (units_merged) | `owen_tree` | 428 | " in made
    assert f"\n| {WARM} | " in made
