"""The benchmark of new weights measures what its page says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import THREAD_VARIABLES
from benchmarks.page import page

ROOT = Path(__file__).parents[2]
STEPS = {
    "torch": {"swap", "all"},
    "path": {"verify", "swap", "all"},
    "shards": {"receive", "verify", "swap", "all"},
    "path, cast": {"verify", "swap", "all"},
}


def made_up():
    """A report as a run writes it, with times of nobody."""
    timing = {"median_us": 2e6, "lower_quartile_us": 1e6, "upper_quartile_us": 3e6, "repeats": 7, "units": 1}
    return {
        "versions": {"torch": "1"}, "n_bytes": 500_000_000, "n_tensors": 48, "n_shards": 9, "rounds": 7,
        "ways": {
            name: {
                "n_file_bytes": 500_000_000, "per_gb": dict.fromkeys(steps, timing),
                "peak_extra_bytes": 50_000_000, "peak_extra_own_bytes": 5_000_000,
            }
            for name, steps in STEPS.items()
        },
        "device": {"processor": "p", "logical_cores": 2, "system": "s", "python": "3", "load_average_1_minute": 0.5},
    }  # fmt: skip


def test_the_page_has_the_figures(tmp_path):
    """A section with every way, its steps, and its memory as a share of the model."""
    (tmp_path / "machine").mkdir()
    (tmp_path / "machine" / "weights.json").write_text(json.dumps(made_up()), encoding="utf-8")
    made = page(tmp_path)
    assert "### New weights of a policy" in made
    assert "| torch |  |  | 2 s (1 to 3) | 2 s (1 to 3) | 10.0% | 1.0% |" in made
    assert "| shards | 2 s (1 to 3) | 2 s (1 to 3) | 2 s (1 to 3) | 2 s (1 to 3) | 10.0% | 1.0% |" in made


@pytest.mark.slow
@pytest.mark.models
def test_every_way_is_measured(tmp_path):
    """A quick run has all steps of all ways, each as often as it says, and its memory."""
    out, path = tmp_path / "weights.json", {"PYTHONPATH": os.pathsep.join(("service", "client", "tests"))}
    subprocess.run(
        [sys.executable, "-m", "benchmarks.weights", "--quick", "--out", str(out)],
        check=True, cwd=ROOT, env=os.environ | path | dict.fromkeys(THREAD_VARIABLES, "1"), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    report = json.loads(out.read_text(encoding="utf-8"))
    assert {name: set(way["per_gb"]) for name, way in report["ways"].items()} == STEPS
    assert report["n_shards"] > 1
    assert report["ways"]["path, cast"]["n_file_bytes"] * 2 == report["n_bytes"]
    for way in report["ways"].values():
        assert way["peak_extra_bytes"] >= 0
        for timing in way["per_gb"].values():
            assert timing["repeats"] == report["rounds"]
            assert 0 < timing["lower_quartile_us"] <= timing["median_us"]
