"""Sensitivities that are worked out by hand, the client in this process, and results that are the same."""

from dataclasses import fields

import numpy as np

from creditd.client import Client, OarResult

WORKED = [0.0, 0.1, 0.5, 1.0, 4.0]


def local(wire_format="binary", **options):
    """The result in this process."""
    with Client("local:", wire_format=wire_format) as client:
        return client.oar(**options)


def assert_same(one, other):
    """Equal bits in every field that says something of the completions."""
    for field in fields(OarResult):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name in {"request_id", "usage", "service"}:
            continue
        if hasattr(ours, "row_splits"):
            assert ours.row_splits.tolist() == theirs.row_splits.tolist(), field.name
            ours, theirs = ours.values, theirs.values
        if isinstance(ours, np.ndarray):
            assert ours.tobytes() == theirs.tobytes(), field.name
        else:
            assert ours == theirs, field.name
