"""The page of benchmarks says what the figures say."""

import json
import shutil

import pytest

from benchmarks.page import PAGE, RESULTS, page

TABLES = {
    "device": {
        "processor": "A",
        "logical_cores": 2,
        "load_average_1_minute": None,
        "system": "S",
        "python": "3.11",
    },
    "versions": {"numpy": "2", "shap": None},
    "table_semivalues": [{"players": 8, "tables": 4096, "per_game": None}],
    "peers": [{"peer": "slow", "players": 8, "skipped": "no time"}],
    "max": {"sets": 4096, "candidates": 8, "per_set": None},
}
TIMING = {"median_us": 0.14, "lower_quartile_us": 0.13, "upper_quartile_us": 0.15, "repeats": 31, "units": 4096}


def test_the_page_is_made_from_the_figures():
    """BENCHMARKS.md is what the figures in the repository make: none was typed."""
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("name", ["tables", "estimators", "coverage"])
def test_the_figures_name_their_device(name):
    """Every report says which machine and which versions it is about."""
    for path in RESULTS.glob(f"*/{name}.json"):
        report = json.loads(path.read_text(encoding="utf-8"))
        assert report["device"]["processor"]
        assert report["versions"]


def test_missing_reports_and_peers_are_said(tmp_path):
    """A machine with some of the reports has a section; a peer that did not run is in the table with its reason."""
    report = json.loads(json.dumps(TABLES))
    report["table_semivalues"][0]["per_game"] = report["max"]["per_set"] = TIMING
    (tmp_path / "machine").mkdir()
    (tmp_path / "machine" / "tables.json").write_text(json.dumps(report), encoding="utf-8")
    made = page(tmp_path)
    assert "## machine" in made
    assert "| 8 | slow | not run: no time | | |" in made
    assert "0.14 µs (0.13 to 0.15, 31 repeats)" in made
    assert "load unknown" in made
    assert "### Coverage" not in made
    shutil.rmtree(tmp_path / "machine")
    (tmp_path / "empty").mkdir()
    assert "## empty" in page(tmp_path)
