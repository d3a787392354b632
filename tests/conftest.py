"""Settings that every test shares: the same examples in every run, and no clock."""

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("fast", derandomize=True, deadline=None, max_examples=15)
settings.load_profile("ci")
