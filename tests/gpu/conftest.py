"""Tests on a GPU, which run by themselves (`make gpu`): without one they do not run, and that is no pass."""

from pathlib import Path

import pytest

try:
    import torch
except ImportError:
    torch = None


def why_not():
    """What keeps these tests from running; None if nothing does."""
    if torch is None:
        return "torch is not installed"
    return None if torch.cuda.is_available() else "torch finds no GPU"


def pytest_sessionstart(session):
    """A run of this folder alone fails where there is no GPU; a run of everything passes over it."""
    if session.config.rootpath == Path(__file__).parent and why_not():
        pytest.exit(f"######## GPU: tests NOT RUN, {why_not()} ########", returncode=1)


def pytest_runtest_setup(item):
    """No test of this folder passes without a GPU."""
    if item.path.is_relative_to(Path(__file__).parent) and why_not():
        pytest.skip(f"NOT RUN: {why_not()}")
