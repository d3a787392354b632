"""Numbers as they are read: few digits, a real minus sign. The script of the page at `/` writes the same texts."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal, localcontext

NONE = "—"
"""What stands for a number that there is not."""
MOST_OF_A_WHOLE = 1e3
"""How many times a whole a part may be for their ratio to be shown."""
LEVELS = 6
"""Shades on either side of nothing."""


def figure(value: float | None) -> str:
    """A number with four decimals, or in powers of ten where these say nothing; `NONE` for None."""
    if value is None:
        return NONE
    size = abs(value)
    if size == 0:
        return "0"
    sign = "−" if value < 0 else ""
    if size < 1e-4 or size >= 1e6:
        return sign + _digits(size, ".1e")
    return sign + _digits(size, ".4f" if size < 100 else ".1f")


def signed(value: float) -> str:
    """A number with its sign and three digits: what has room beside a word."""
    size = abs(value)
    if size == 0:
        return "0"
    sign = "−" if value < 0 else "+"
    if size < 1e-3 or size >= 1e5:
        return sign + _digits(size, ".0e")
    return sign + _digits(size, ".3f" if size < 1 else ".2f" if size < 10 else ".1f" if size < 100 else ".0f")


def share(value: float | None, whole: float | None) -> str:
    """A part of a whole in percent; `NONE` where the whole is nothing, or next to nothing beside the part."""
    if value is None or whole is None or abs(value) >= MOST_OF_A_WHOLE * abs(whole):
        return NONE
    percent = 100 * value / whole
    return f"{'−' if percent < 0 else ''}{_digits(abs(percent), '.1f')} %"


def fraction(value: float, most: float) -> float:
    """`value` as a share of `most`, from −1 to 1; 0 where `most` is 0."""
    return value / most if most > 0 else 0.0


def level(value: float | None, most: float) -> str:
    """The class of a value: `gain-3`, `loss-6`, `even` for what is near nothing, `unvalued` for None.

    Args:
        value: Reward units.
        most: The largest magnitude on the same scale, which gets the last of the `LEVELS`.
    """
    if value is None:
        return "unvalued"
    step = int(LEVELS * abs(fraction(value, most)) + 0.5)
    return "even" if step == 0 else f"{'gain' if value > 0 else 'loss'}-{step}"


def _digits(size: float, form: str) -> str:
    """A size in a form, ties away from zero as in ECMAScript."""
    with localcontext() as context:
        context.rounding = ROUND_HALF_UP
        return format(Decimal(size), form).replace("-", "−")
