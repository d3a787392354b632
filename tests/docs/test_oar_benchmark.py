"""The benchmark of OAR measures what its page says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import THREAD_VARIABLES
from benchmarks.oar_section import kept
from benchmarks.page import page

ROOT = Path(__file__).parents[2]
PEER, ENGINE, PLAIN = "transformers", "creditd", "GRPO"
OURS = {f"{method}, {where}" for method in ("OAR-G", "OAR-P") for where in ("a service", "in process")}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What a quick run writes."""
    out = tmp_path_factory.mktemp("oar") / "oar.json"
    path = {"PYTHONPATH": os.pathsep.join(("service", "client", "trainer_adapters", "tests"))}
    subprocess.run(
        [sys.executable, "-m", "benchmarks.oar", "--quick", "--out", str(out)],
        check=True, cwd=ROOT, env=os.environ | path | dict.fromkeys(THREAD_VARIABLES, "1"), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return json.loads(out.read_text(encoding="utf-8"))


def cells_of(report, method):
    """The cells of one method."""
    return [cell for cell in report["cells"] if cell["method"] == method]


def made_up():
    """A report as a run writes it, with times of nobody."""
    timing = {f"{name}_us": 2e6 for name in ("median", "lower_quartile", "upper_quartile")} | {"repeats": 3}
    times = {"of_medians": 1.25, "of_nearest_quartiles": 1.5}
    way = {"wall": timing, "processor": timing}
    cell = {
        "prompt": 64, "reasoning": 256, "conclusion": 9, "answer": 8, "completions": 8,
        "batches_s": {"1": 1.0, "4": 2.0}, "best_batch": 4, "difference": 1e-4,
        "times": times, "times_by_processor_time": times,
        "wall": dict.fromkeys((PEER, ENGINE), timing), "processor": dict.fromkeys((PEER, ENGINE), timing),
    }  # fmt: skip
    credit = {
        "times_plain": times,
        "times_plain_by_processor_time": times,
        "credit": timing,
        "push": timing,
        "share": 0.2,
    }
    return {
        "parameters": 8916608, "dtype": "float32", "versions": {"torch": "1"},
        "rounds": {"gradient": 9, "perturbation": 5},
        "cells": [
            cell | {"method": "gradient", "most_times": 1.3},
            cell | {"method": "perturbation", "ideal_ratio": 2.3, "share_of_ideal": 0.54, "least_times": 1.84},
        ],
        "steps": {
            "prompt": 64, "completion": 96, "completions": 8, "timed": 3,
            "ways": {PLAIN: way, **dict.fromkeys(OURS, way | credit)},
        },
        "device": {"processor": "p", "logical_cores": 2, "system": "s", "python": "3", "load_average_1_minute": 0.5},
    }  # fmt: skip


def test_the_page_has_the_figures(tmp_path):
    """A section with both methods, whether what was wanted is kept, and the steps of every way of training."""
    (tmp_path / "machine").mkdir()
    (tmp_path / "machine" / "oar.json").write_text(json.dumps(made_up()), encoding="utf-8")
    made = page(tmp_path)
    assert "### OAR against plain transformers, on a processor" in made
    of_time = "2 s (2 to 2), rows of 4 | 2 s (2 to 2) | 1.25× (1.50) | 1.25× (1.50)"
    assert f"| OAR-G | 64 | {of_time} |  | ≤ 1.3× | kept |" in made
    assert f"| OAR-P | 64 | {of_time} | 54% of 2.30× | ≥ 1.84× | missed |" in made
    for name in OURS:
        assert f"| {name} | 2 s (2 to 2) | 2 s (2 to 2) | 1.25× (1.50) | 1.25× (1.50) | 2 s (2 to 2) | " in made
    assert f"| {PLAIN} | 2 s (2 to 2) | 2 s (2 to 2) |  |" in made


def test_what_is_wanted_has_a_direction():
    """OAR-G may cost a little more, OAR-P has to gain; by time or by processor time."""
    gradient, perturbation = made_up()["cells"]
    assert kept(gradient)
    assert not kept(gradient | {"times": {"of_medians": 1.31}})
    assert not kept(perturbation)
    assert kept(perturbation | {"times": {"of_medians": 1.84}})
    assert kept(perturbation | {"slow": {"of_medians": 3.0}}, "slow")


@pytest.mark.slow
@pytest.mark.trainer
def test_both_sides_have_the_same_sensitivities(report):
    """Sensitivities of transformers and of the engine agree before a time counts."""
    assert [(cell["method"], cell["prompt"]) for cell in report["cells"]] == [("perturbation", 8), ("gradient", 8)]
    for cell in report["cells"]:
        assert set(cell["wall"]) == set(cell["processor"]) == {PEER, ENGINE}
        assert 0 < cell["difference"] <= cell["allowed_difference"]
        for found in (*cell["wall"].values(), *cell["processor"].values()):
            assert found["repeats"] == report["rounds"][cell["method"]]
            assert found["lower_quartile_us"] > 0


@pytest.mark.slow
@pytest.mark.trainer
def test_tokens_are_counted_on_both_sides(report):
    """The peer reads each row once more for each token; a trie reads the row, and of each variant the rest."""
    (cell,) = cells_of(report, "perturbation")
    read = 8 + 12 + 3 + 2 - 1
    assert cell["tokens_of_the_peer"] == cell["completions"] * 13 * read
    distinct = read + sum(read - 8 - place for place in range(12))
    assert cell["completions"] * distinct <= cell["tokens_computed"] < cell["tokens_of_the_peer"]
    assert cell["ideal_ratio"] == 12 * read / distinct
    assert cell["share_of_ideal"] == pytest.approx(cell["times"]["of_medians"] / cell["ideal_ratio"])
    assert cell["least_times"] == pytest.approx(0.8 * cell["ideal_ratio"])
    (cell,) = cells_of(report, "gradient")
    assert cell["tokens_of_the_peer"] == cell["completions"] * 2 * read
    assert cell["most_times"] == 1.3


@pytest.mark.slow
@pytest.mark.trainer
def test_steps_are_those_of_trl(report):
    """Every way of training has its steps; credit is a part of each, and handing over weights a part of it."""
    ways = report["steps"]["ways"]
    assert set(ways) == OURS | {PLAIN}
    for name, way in ways.items():
        assert way["wall"]["repeats"] == way["processor"]["repeats"] == report["steps"]["timed"]
        if name == PLAIN:
            continue
        assert 0 < way["share"] < 1
        assert way["reasoning"] > 0
        pushed = way["push"]["median_us"]
        assert 0 < pushed < way["credit"]["median_us"] if name.endswith("service") else pushed == 0
