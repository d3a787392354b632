"""The benchmark of the utility cache measures what its page says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cache_games import Workload
from benchmarks.cache_reading import FETCHED, PACKED, PER_COALITION, RAW, SINGLE, coalition_keys, times_of
from benchmarks.measure import THREAD_VARIABLES
from benchmarks.page import page
from benchmarks.utility_cache import LENGTHS, bounds_of

ROOT = Path(__file__).parents[2]
SMALL = Workload(prompts=2, sets=2, candidates=3, length=40)
TIMING = {"lower_quartile_us": 900.0, "upper_quartile_us": 1100.0, "repeats": 3, "units": 1, "least_us": 800.0}


def timing(median_us):
    """Times around a median."""
    return {**TIMING, "median_us": median_us}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What a quick run writes."""
    out = tmp_path_factory.mktemp("cache") / "utility_cache.json"
    path = {"PYTHONPATH": os.pathsep.join(("service", "client", "tests"))}
    subprocess.run(
        [sys.executable, "-m", "benchmarks.utility_cache", "--quick", "--out", str(out)],
        check=True, cwd=ROOT, env=os.environ | path | dict.fromkeys(THREAD_VARIABLES, "1"), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.redis
def test_a_quick_run_has_every_figure(report):
    """Times with their spread, all ways checked, and what a request costs when it is asked again."""
    for group in ("reading", "writing", "outages"):
        for found in report[group].values():
            assert 0 < found["least_us"] <= found["lower_quartile_us"] <= found["median_us"]
            assert found["median_us"] <= found["upper_quartile_us"]
    assert {RAW, FETCHED, PER_COALITION} <= set(report["reading"])
    assert set(report["writing"]) == {PACKED, SINGLE}
    assert report["device"]["processor"]
    assert report["versions"]["redis"]
    asked = [(row["evaluations"], row["texts_that_the_model_read"]) for row in report["evaluations"]]
    assert asked[0][0] == asked[0][1] > 500
    assert asked[1:] == [(0, 0)] * 3
    assert all(row["from_cache"] == asked[0][0] for row in report["evaluations"][1:])


@pytest.mark.slow
@pytest.mark.redis
def test_a_packed_game_is_smaller_than_its_coalitions(report):
    """In Redis a game of many coalitions takes a tenth of what keys of their own would, and one of one hardly more."""
    single = [row["coalitions"] * row["per_coalition_one_key"] / row["packed_one_key"] for row in report["in_redis"]]
    assert single[0] > 10
    assert single[1] > 0.67
    assert single[2] > 9


@pytest.mark.slow
@pytest.mark.redis
def test_the_cache_counts_what_its_games_take(report):
    """The bytes by which the memory of the cache is bounded are what Python allocates for it, within a quarter."""
    for row in report["in_process"]:
        for held in (row["from_redis"], row["from_model"]):
            assert held["estimate"] == pytest.approx(held["allocated"], rel=0.25)


@pytest.mark.slow
@pytest.mark.redis
def test_the_page_has_the_figures(report, tmp_path):
    """A section with the ways, the bounds and whether they were kept."""
    (tmp_path / "machine").mkdir()
    report["bounds"][0] |= {"asked": 3.0, "found": 3.25, "kept": False}
    (tmp_path / "machine" / "utility_cache.json").write_text(json.dumps(report), encoding="utf-8")
    made = page(tmp_path)
    assert "### Utilities that are remembered" in made
    assert f"| {FETCHED}, times {RAW}: at most 3.00× | 3.25× | missed |" in made
    assert "| after a restart | 0 | 512 |" in made
    assert "| Redis is frozen, before the breaker opens | " in made


def test_bounds_are_what_was_asked_for():
    """Three times the raw MGET, and with the keys 5 ms and 2.5 µs for each candidate, by the median."""
    reading = {RAW: timing(1000.0), FETCHED: timing(3000.0)}
    reading |= {f"{length:,} characters: texts to arrays": timing(15240.0) for length in LENGTHS}
    found = bounds_of(reading, 4096)
    assert [bound["asked"] for bound in found] == [3.0, 15.24, 15.24]
    assert all(bound["kept"] for bound in found)
    assert not any(bound["kept"] for bound in bounds_of(reading | {FETCHED: timing(3001.0)}, 4095))


def test_a_ratio_is_shown_by_medians_quartiles_and_least_times():
    """The quartiles are those that favour the slower one."""
    slower = {**timing(2000.0), "lower_quartile_us": 1650.0, "least_us": 1600.0}
    assert times_of(slower, timing(1000.0)) == {"of_medians": 2.0, "of_nearest_quartiles": 1.5, "of_least": 2.0}


def test_sets_of_a_workload_share_nothing_but_their_texts():
    """As in a decoded request: prompts and coalitions are equal, and not the same objects; every key is another one."""
    first, second = SMALL.texts[:2]
    assert first.prompt == second.prompt
    assert first.prompt is not second.prompt
    assert first.coalitions is not second.coalitions
    assert len({unit for one in SMALL.texts for unit in one.units}) == SMALL.all_candidates == 12
    single = [key for keys in coalition_keys(SMALL) for key in keys]
    assert len({*single, *(key.text for key in SMALL.keys)}) == 9 * SMALL.games
    assert {len(key) for key in single} == {len(SMALL.keys[0].text)}
