"""What can be unusual about a set or a group, as bits; the lower-case name of a bit is its name on the wire."""

from __future__ import annotations

from enum import IntFlag


class Flag(IntFlag):
    """One bit per condition. Append-only: a bit and its name never change their meaning."""

    DEGENERATE_GROUP = 1
    """The group has no contrast, so its centred advantages are exactly 0."""
    SINGLE_RESPONSE = 2
    """The group has one response: there is nothing to compare it with but itself."""
    GROUP_INCOMPLETE = 4
    """Another set of the group failed or a reward of the group is null; this one is solved without it."""
    NO_CANDIDATES = 8
    """Nothing was parsed or scored: the response counts with the failure reward."""
    CANDIDATE_UNSCORED = 16
    """A candidate has a null reward and is not a player."""
    CANDIDATE_TRUNCATED = 32
    """More candidates than asked for: the surplus are not players."""
    DUPLICATES_COLLAPSED = 64
    """Copies of an earlier candidate are null players."""
    UNSTABLE_NORMALIZATION = 128
    """The denominator is far below the spread of the credits, so the advantages are very large."""
    INTERVAL_APPROXIMATE = 256
    """10·n to 30·n coalitions were evaluated, or it stopped early: the coverage of the intervals is not promised."""
    FALLBACK_RETURN = 512
    """The completion could not be decomposed: its return stands on its last trainable token."""
    UNITS_MERGED = 1024
    """Neighbouring units were merged, because there were more than asked for."""
    ANSWER_NOT_FOUND = 2048
    """The completion has no answer to be sensitive: its tokens have the plain advantage."""
    FLAT_SENSITIVITY = 4096
    """No token of the reasoning matters more than another, or there is one alone: all weights are 1."""

    @property
    def wire_names(self) -> tuple[str, ...]:
        """Names of the bits that are set, lowest bit first."""
        return tuple(str(flag.name).lower() for flag in Flag if flag in self)
