from creditd.credit import Flag


def test_bits_never_change():
    """Each bit has the number and the wire name that was published."""
    assert {flag.value: flag.wire_names for flag in Flag} == {
        1: ("degenerate_group",),
        2: ("single_response",),
        4: ("group_incomplete",),
        8: ("no_candidates",),
        16: ("candidate_unscored",),
        32: ("candidate_truncated",),
        64: ("duplicates_collapsed",),
        128: ("unstable_normalization",),
        256: ("interval_approximate",),
        512: ("fallback_return",),
        1024: ("units_merged",),
        2048: ("answer_not_found",),
        4096: ("flat_sensitivity",),
    }


def test_names_come_lowest_bit_first():
    """A combination is the names of its bits, lowest first; no bit has no name."""
    both = Flag.UNSTABLE_NORMALIZATION | Flag.SINGLE_RESPONSE
    assert both.wire_names == ("single_response", "unstable_normalization")
    assert Flag(0).wire_names == ()
