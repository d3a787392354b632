"""The whole demonstration of OAR, short: a policy, a real service that gets its weights, and trainings."""

import json
import subprocess
import sys

import pytest

from demo.conftest import DEMO
from oar_findings import row_of
from oar_plans import BASELINE, FLIPS, MEASURES, METHODS, QUICK

pytest.importorskip("trl", reason="the lane `trainer` installs transformers and torch")
pytest.importorskip("matplotlib", reason="the lane `trainer` installs matplotlib")
pytestmark = [pytest.mark.trainer, pytest.mark.filterwarnings("ignore")]

LIMIT_S = 1800.0
"""What the test waits for a run that takes about two minutes on two quiet cores."""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What `oar_run.py --quick` leaves behind."""
    directory = tmp_path_factory.mktemp("demo_oar")
    command = [sys.executable, str(DEMO / "oar_run.py"), "--quick", "--out", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.fixture(scope="module")
def results(out):
    """Its oar.json."""
    return json.loads((out / "oar.json").read_text(encoding="utf-8"))


def test_every_method_ran_with_every_seed(results):
    """The grid is the same for all methods, and so are the seeds; GRPO ran at every rate besides."""
    grid = {(run["method"], run["rate"], run["seed"]) for run in results["grid"]}
    assert grid == {(method, rate, seed) for method in METHODS for rate in QUICK.rates for seed in QUICK.grid_seeds}
    assert {(run["method"], run["seed"]) for run in results["runs"]} == {
        (method, seed) for method in METHODS for seed in QUICK.seeds
    }
    assert {(run["rate"], run["seed"]) for run in results["baseline_runs"]} == {
        (rate, seed) for rate in QUICK.rates for seed in QUICK.seeds
    }


def test_weights_are_handed_over_at_every_step(results):
    """Each step of OAR is a request that the service answered, for weights of that very step; GRPO asks nobody."""
    for run in results["runs"]:
        if run["method"] == BASELINE:
            assert run["answered"] == 0
            assert "pushes" not in run["by_step"]
            continue
        assert run["answered"] == QUICK.steps
        assert run["by_step"]["pushes"] == [1.0] * QUICK.steps
        assert all(size > 0 for size in run["by_step"]["push_bytes"])
        assert all(0 < share < 1 for share in run["by_step"]["effective_share"])
        assert run["warnings"] == []


def test_methods_begin_alike(results):
    """The same checkpoint, and the same rollouts in the first step of a seed, so that differences are paired."""
    for seed in QUICK.seeds:
        own = [run for run in results["runs"] if run["seed"] == seed]
        assert len({run["curve"][0]["accuracy"] for run in own}) == 1
        assert len({run["by_step"]["reward"][0] for run in own}) == 1
        assert len({run["curve"][-1]["entropy"] for run in own}) == len(own)


def test_a_dead_service_costs_one_retry_and_not_the_run(results):
    """All steps were made; the weights were pushed once more, and the curve is that of a run without an outage."""
    run = results["outage"]
    assert run["steps"] == run["answered"] == QUICK.outage_steps
    assert run["lost"]["requests_before"] == run["lost"]["weights_before"] - 1
    assert run["unknown"] == 1
    assert len(run["warnings"]) == 1
    assert results["outage_compared"] == {"pushes_more": 1, "largest_difference": 0.0}


def test_fidelity_is_of_the_checkpoint(results):
    """Every measure chose tokens, and their flips were counted with the rest kept and written anew."""
    found = results["fidelity"]
    assert found["texts"] == QUICK.study_texts
    for kind in FLIPS:
        for name in ("random", *MEASURES):
            assert 0 <= row_of(found["rates"], flips=kind, measure=name)["mean"] <= 1


def test_a_report_and_a_figure_are_there(out, results):
    """And nothing of the work; the report begins by saying that it means nothing."""
    assert sorted(path.name for path in out.iterdir()) == ["oar.json", "oar_curves.png", "oar_report.md"]
    assert (out / "oar_report.md").read_text(encoding="utf-8").startswith("*A quick run")
    assert set(results["rates"]) == set(METHODS)
