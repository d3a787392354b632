"""How much memory measuring a policy needs at most beside its weights: known from its configuration before it is run.

Legend: `n` layers, `c` tokens of a pass, `N` of the longest row, `V` tokens of the vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from creditd.engines.answer_heads import MOST_LOGITS, VOCABULARY_PART
from creditd.engines.memory import FLOAT32, ForwardShape, batch_bytes
from creditd.engines.perturbation import MOST_ROWS

_FLOAT64 = 8
MOST_CLEAN = 1 << 24
"""Clean log-probabilities that are kept for the rows of a batch, unless those of one row are more."""
_LOGITS = 2 * FLOAT32 + 3 * _FLOAT64
"""Of one logit in memory at once: itself and its mean in float32; its log-probability, a term and a copy in float64."""
_LOGITS_BACK = 3 * FLOAT32 + 5 * _FLOAT64
"""The same with what goes back through the head."""
_SAVED_QUERIES, _SAVED_KEYS, _SAVED_INNER, _SAVED_HIDDEN = 6, 6, 5, 8
"""Arrays of one layer that are kept for the way back: as wide as all queries, all keys, the inner layer, the states."""
_SAVED_SCORES = 3
"""Arrays of all scores that an attention which holds them keeps."""


def perturbation_bytes(
    shape: ForwardShape, *, most_tokens: int, longest: int, vocabulary: int, n_read: int, shares: bool
) -> int:
    """Most memory of measuring one item by perturbation.

    Args:
        shape: The model.
        most_tokens: Most tokens of a pass; one longer row goes by itself.
        longest: Longest row, N.
        vocabulary: V.
        n_read: Most positions of one row that are read: answer tokens, or 1 where their mean is taken before.
        shares: Whether rows go on from keys and values of their beginning.

    Returns:
        Bytes beside the weights: keys and values of one row in all layers, a pass, and logits.

    Cost:
        O(1).
    """
    kept = _keys_bytes(shape, longest) * shape.n_layers if shares else 0
    logits = _head_bytes(shape, vocabulary, MOST_ROWS * n_read, _LOGITS)
    return kept + _rows_bytes(shape, most_tokens, longest) + logits


def gradient_bytes(
    model: PreTrainedModel, shape: ForwardShape, *, most_tokens: int, longest: int, vocabulary: int, n_read: int
) -> int:
    """Most memory of measuring a batch by the gradient.

    Args:
        model: Whose weights that are not float32 are copied.
        shape: The model as it is registered.
        most_tokens: Most tokens of a batch; one longer row goes by itself.
        longest: Longest row, N.
        vocabulary: V.
        n_read: Most positions of one row that are read.

    Returns:
        Bytes beside the weights: the copy of them in float32, keys and values of the batch, what is kept of each layer
        for the way back, a pass, logits, and the clean log-probabilities of all rows.

    Cost:
        O(parameters).
    """
    shape = replace(shape, n_bytes=FLOAT32)
    n_tokens = max(most_tokens, longest)
    queries, keys = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    numbers = _SAVED_QUERIES * queries + _SAVED_KEYS * keys + _SAVED_INNER * shape.inner + _SAVED_HIDDEN * shape.hidden
    # Keys and values of every row, those of its beginning in front, and once more for each head where it is repeated.
    numbers += 2 * (keys + queries)
    scores = _SAVED_SCORES * FLOAT32 * shape.n_heads * n_tokens * longest if shape.keeps_scores else 0
    saved = shape.n_layers * (FLOAT32 * numbers * n_tokens + scores) + 4 * FLOAT32 * shape.hidden * n_tokens
    kept = _keys_bytes(shape, n_tokens) * shape.n_layers
    passes = _rows_bytes(shape, most_tokens, longest)
    clean = _FLOAT64 * vocabulary * min(most_tokens, clean_rows(vocabulary))
    logits = _head_bytes(shape, vocabulary, n_read, _LOGITS_BACK)
    return copy_bytes(model) + kept + saved + passes + clean + logits


def clean_rows(vocabulary: int) -> int:
    """Most rows of a batch by the gradient, of each of which the clean log-probabilities are kept.

    Args:
        vocabulary: V.
    """
    return max(1, MOST_CLEAN // vocabulary)


def copy_bytes(model: nn.Module) -> int:
    """Memory of a copy in float32 of the weights that are not."""
    return sum(
        FLOAT32 * one.numel() for one in model.parameters() if one.is_floating_point() and one.element_size() != FLOAT32
    )


def _keys_bytes(shape: ForwardShape, n_tokens: int) -> int:
    """Keys and values of one layer."""
    return 2 * shape.n_bytes * shape.n_kv_heads * shape.head_dim * n_tokens


def _rows_bytes(shape: ForwardShape, most_tokens: int, longest: int) -> int:
    """A pass over rows, and in one layer keys and values of their beginnings in front of each of them.

    Rows may be short and what is before them long: as many rows as a pass has tokens are bounded by those that it has
    at all, each with a beginning.
    """
    n_rows = min(MOST_ROWS, max(1, most_tokens))
    known = 2 * _keys_bytes(shape, n_rows * longest)
    mask = (2 + 2 * shape.n_bytes) * max(most_tokens, longest) * longest
    repeated = 2 * shape.n_bytes * shape.n_heads * shape.head_dim * n_rows * longest
    scores = 0
    if shape.keeps_scores:
        scores = max(most_tokens, longest) * longest * shape.n_heads * (3 * shape.n_bytes + 2 * FLOAT32)
    return known + mask + repeated + scores + batch_bytes(shape, most_tokens=most_tokens, longest=longest)


def _logits_at_once(vocabulary: int, n_positions: int) -> int:
    """Of some positions as many as `MOST_LOGITS` has room for, and one at least."""
    return max(vocabulary, min(MOST_LOGITS, n_positions * vocabulary))


def _head_bytes(shape: ForwardShape, vocabulary: int, n_positions: int, each: int) -> int:
    """Logits of some positions, and the part of the head that is turned to float32."""
    part = min(max(VOCABULARY_PART, shape.hidden), vocabulary * shape.hidden) if shape.n_bytes != FLOAT32 else 0
    return each * _logits_at_once(vocabulary, n_positions) + FLOAT32 * part
