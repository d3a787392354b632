"""The suite of the credit library notices every formula that is off by 10⁻⁶, even when its sum is kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mutation.registry import MUTANTS

TESTS = Path(__file__).parents[1]
SUITES = sorted({mutant.suite for mutant in MUTANTS.values()})
SOME_TESTS_FAILED = 1
"""The exit status of pytest when tests ran and failed: not that of a run that could not start."""

pytestmark = pytest.mark.slow


def run(suite, name, marker):
    """The test file in a process of its own, with one formula shifted."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)]),
        "CREDITD_MUTANT": name,
        "CREDITD_MUTANT_MARKER": str(marker),
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=line", "-p", "no:cacheprovider"]
    command += ["-p", "mutation.plugin", "--hypothesis-profile=mutation", str(TESTS / "credit" / suite)]
    return subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("suite", SUITES)
def test_the_formula_as_it_is_passes(suite, tmp_path):
    """Without a mutant each test file passes under the same profile, so that a failure is the mutant's."""
    finished = run(suite, "", tmp_path / "marker")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_shifted_formula_fails(name, tmp_path):
    """A formula shifted by 10⁻⁶ with its sum kept is called, and makes its test file fail."""
    finished = run(MUTANTS[name].suite, name, tmp_path / "marker")
    assert (tmp_path / "marker").exists(), f"{name} never applied: {finished.stdout + finished.stderr}"
    assert finished.returncode == SOME_TESTS_FAILED, f"{name} survived: {finished.stdout + finished.stderr}"
