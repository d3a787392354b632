"""Settings that every test shares: the same examples in every run, and no clock."""

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
settings.load_profile("ci")
