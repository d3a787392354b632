"""Tests of Redis wait a quarter of a second for it, as the service does."""

import gc

import pytest


@pytest.fixture(autouse=True, scope="session")
def short_pauses():
    """No collection of garbage looks at what was there before: thousands of tests would make a pause of each."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
