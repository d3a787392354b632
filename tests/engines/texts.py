"""Texts as engines are asked about them."""

import numpy as np

from creditd.engines.protocol import VariantTexts


def of_one(prompt, completion):
    """A prompt with one completion."""
    return VariantTexts(prompt, (completion,), np.ones((1, 1), dtype=np.bool_))
