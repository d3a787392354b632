"""What every comparison with a library asks about, and which warnings of those libraries say nothing about it."""

import pytest

REWARDS = [[1.0, 0.0, 0.25, 1.0], [0.5, 0.0, 3.0, 0.0], [0.75, 0.125, 0.5, 0.25]]
TOKENS = [[3, 1, 5, 2], [4, 4, 1, 6], [2, 7, 3, 1]]
LENGTH = 8
"""Tokens that the longest response is padded to."""
KINDS_OF_WARNING = ("FutureWarning", "DeprecationWarning", "UserWarning", "ResourceWarning", "SyntaxWarning")
OF_A_LIBRARY = [
    pytest.mark.trainer,
    *(pytest.mark.filterwarnings(f"ignore::{kind}") for kind in KINDS_OF_WARNING),
]
"""Marks of a module that runs a library."""
