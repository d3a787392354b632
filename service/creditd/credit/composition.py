"""From the credit of a candidate to its spans and tokens: what a span is worth to the set, and what its tokens receive.

Legend: `K` candidates of one set, `k` the one that is looked into, `m` units (spans) of it, unit j with ℓ_j tokens that
the policy chose, L = Σ ℓ_j of them altogether. φ is the candidate's credit and x_j that of its unit j, reward units. A
is the candidate's advantage and ω its length weight, 1 or as `length_norm` says. Its *mass* is M = L·ω·A, the sum of
the advantages of its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.owen_trees import owen_plan
from creditd.credit.tables import player_count, table_semivalues

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

NEGLIGIBLE_CONTRAST = 1e-12
"""Units whose credits deviate from an even share by less than this part of the largest credit, or of the largest
utility that the credits come from, differ by rounding alone."""


@dataclass(frozen=True)
class MaxShare:
    """The Shapley credit of one candidate under the utility max, by what its own text is worth.

        f(y) = (1/K)·[y − e + Σ_q W_q·max(y − o_q, 0)],     W_q = Σ_{s=1}^{q+1} C(q, s−1)/C(K−1, s)
        W_q/K = 1/((K − q)(K − q − 1)),     f(∅) := 0

    with o_0 ≤ … ≤ o_{K−2} the rewards of the other candidates and e = v(∅). Units of candidate k are players who come
    in unions, one union per candidate: seen from inside union k, the others arrive whole or not at all, and what is
    left of the game is S ↦ f(v_k(S)), v_k(S) the reward of the text of its units S. So the Shapley values of that small
    game are the Owen values of the large one, and partial texts of candidate k alone have to be scored.

    Attributes:
        others: Shape (K − 1,), float64, reward units, finite; in any order.
        empty: e, reward units: v of a set without candidates.
        floor: b, reward units: v(S) = max(b, max r) and v(∅) = b, instead of `empty`. None: no floor.

    Raises:
        ValueError: If a number is not finite, or both a floor and another `empty` are given.

    Reference:
        ShapE-GRPO, arXiv:2603.29871v1; Owen 1977, Values of games with a priori unions.

    Differs from the paper:
        No paper looks into the candidates of a set; the function is creditd's.
    """

    others: Floats
    empty: float = 0.0
    floor: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no number, and put the others in their order."""
        others = np.sort(np.asarray(self.others, dtype=np.float64))
        if others.ndim != 1 or not np.isfinite(others).all() or not math.isfinite(self.empty):
            raise ValueError("others and empty: got something else than finite numbers, expected finite ones")
        if self.floor is not None and (not math.isfinite(self.floor) or self.empty not in {0.0, self.floor}):
            raise ValueError(
                f"empty and floor both define v(∅): got {self.empty} and {self.floor}, expected one of them"
            )
        object.__setattr__(self, "others", others if self.floor is None else np.maximum(others, self.floor))

    def __call__(self, utilities: Floats) -> Floats:
        """The credit that the candidate would have with each of some rewards.

        Args:
            utilities: y, any shape, float64, reward units: what its text is worth.

        Returns:
            f(y), of the same shape, reward units. It never falls with y, rises by at most 1 and at least 1/K per unit
            (with a floor: 0 below it), and at the candidate's own reward it is its Shapley credit φ. The order of the
            others changes no bit.

        Cost:
            O(K) per number.
        """
        n, base = len(self.others) + 1, self.empty if self.floor is None else self.floor
        y = np.asarray(utilities, dtype=np.float64)
        if self.floor is not None:
            y = np.maximum(y, self.floor)
        total = (y - base) / n
        for q, other in enumerate(self.others.tolist()):
            total = total + np.maximum(y - other, 0.0) / ((n - q) * (n - q - 1))
        return total

    def of_table(self, utilities: Floats) -> Floats:
        """The game between the units of the candidate, as a table.

        Args:
            utilities: Shape (2^m,), float64, reward units: what the text is worth that units S write, bit j of the
                index is unit j. What stands for no unit is not looked at: a candidate without text is absent.

        Returns:
            Shape (2^m,), float64, reward units; exactly 0 for no unit.

        Cost:
            O(K·2^m).
        """
        table = self(utilities)
        table[0] = 0.0
        return table

    def of_texts(self, utility: Callable[[str, str], float | None], *, absent: str = "") -> Callable[[str, str], float]:
        """A utility of texts that says what each is worth to the set instead of by itself.

        Args:
            utility: `f(prompt, text) -> float`, reward units: what a text is worth as an answer.
            absent: The text in which all units are absent: empty, or what `absent` of `Client.scar` puts in their
                place, one blank for `blank`.

        Returns:
            A function of the same kind: f of it, and exactly 0 for the text without units. A utility that refuses a
            text (None or NaN) refuses it here, too. Given to `Client.scar(utility=…)` with the text of candidate k as
            the completion, unit values are span credits x_j that sum to φ, exact or sampled with standard errors.

        Cost:
            One call of the utility per text, none for the one without units.
        """

        def share(prompt: str, text: str) -> float:
            if text == absent:
                return 0.0
            worth = utility(prompt, text)
            return math.nan if worth is None else float(self(np.asarray(worth, dtype=np.float64)))

        return share

    def of_text_batches(
        self, utility: Callable[[list[str], list[str]], Sequence[float | None]], *, absent: str = ""
    ) -> Callable[[list[str], list[str]], Floats]:
        """The same of a utility that takes many texts in one call.

        Args:
            utility: `f(prompts, texts) -> floats`, reward units: what each text is worth as an answer.
            absent: As for `of_texts`.

        Returns:
            A function of the same kind, for `Client.scar(utility=Evaluator(…, batched=True))`. As `of_texts`.

        Raises:
            ValueError: When it is called and the utility gives another number of values.

        Cost:
            One call of the utility per call, and none where no text has units.
        """

        def share(prompts: list[str], texts: list[str]) -> Floats:
            filled = [place for place, text in enumerate(texts) if text != absent]
            values = np.zeros(len(texts))
            if filled:
                worths = utility([prompts[place] for place in filled], [texts[place] for place in filled])
                if len(worths) != len(filled):
                    raise ValueError(f"the utility gave {len(worths)} values, expected {len(filled)}, one per text")
                values[filled] = self(np.array(worths, dtype=np.float64))
            return values

        return share


def span_credits(game: Floats, tree: Integers | None = None) -> Floats:
    """Credits x_j of the units of one candidate from all utilities of the game between them.

    Args:
        game: Shape (2^m,), float64, reward units: `MaxShare.of_table`; bit j of the index is unit j.
        tree: Merges of the m units, shape (m − 1, 2), as `owen_trees`: Owen values over it. None: Shapley values.

    Returns:
        Shape (m,), float64, reward units: Σ x_j = game[N] − game[∅] within 1e-12 of the largest utility. No unit: no
        credit.

    Raises:
        ValueError: If the table is none, has too many players, or the tree is no tree of m units.

    Cost:
        O(m·2^m).

    Reference:
        Owen 1977; SCAR, arXiv:2505.20417, which nests unions of spans along a tree.

    Differs from the paper:
        The game is what the units are worth to the set of candidates, and not by themselves.
    """
    n_units = player_count(len(game))
    if tree is not None and len(tree) != max(n_units - 1, 0):
        raise ValueError(f"a tree of {n_units} units: got {len(tree)} merges, expected {max(n_units - 1, 0)}")
    if n_units == 0:
        return np.empty(0)
    if tree is None:
        values: Floats = table_semivalues(game[None], np.full(n_units, 1.0 / n_units))[0]
        return values
    plan = owen_plan(tree, most=1 << n_units)
    index: Integers = plan.coalitions @ (1 << np.arange(n_units))
    return plan.values(game[index])


def unit_contrasts(values: Floats, lengths: Integers, *, scale: float = 0.0) -> Floats:
    """What a token of each unit gets beyond an even share of the candidate's credit.

        d_j = x_j/ℓ_j − c/L,     c = Σ x_j

    Args:
        values: x, shape (m,), float64, reward units, finite.
        lengths: ℓ, shape (m,), int64, ≥ 1.
        scale: Largest magnitude of the utilities that the credits come from, reward units; 0: the credits are all that
            is known.

    Returns:
        d, shape (m,), float64, reward units per token. Σ ℓ_j·d_j = 0 to the rounding of the contrasts themselves,
        however large an offset all of x/ℓ have. All exactly 0 where no unit deviates from its even share by more than
        1e-12 of the largest |x_j|, or of `scale`.

    Raises:
        ValueError: If the shapes differ, a length is below 1, or a credit is not finite.

    Cost:
        O(m).
    """
    if values.shape != lengths.shape or values.ndim != 1:
        raise ValueError(f"one length per credit: got shapes {values.shape} and {lengths.shape}, expected (m,) of both")
    if not np.isfinite(values).all() or (lengths < 1).any():
        raise ValueError("got a credit that is not finite or a unit without tokens, expected neither")
    if len(values) < 2:
        return np.zeros(len(values))
    tokens = int(lengths.sum())
    # What is left of the even share has the size of the contrasts, so that another round takes its rounding away.
    rest = values
    for _ in range(2):
        rest = rest - lengths * (math.fsum(rest.tolist()) / tokens)
    if np.abs(rest).max() <= NEGLIGIBLE_CONTRAST * max(float(np.abs(values).max()), scale):
        return np.zeros(len(values))
    contrasts: Floats = rest / lengths
    return contrasts


def additive_advantages(
    advantage: float, contrasts: Floats, n_tokens: int, *, slope: float, share: float = 1.0, length_weight: float = 1.0
) -> Floats:
    """Advantage of the tokens of each unit, the candidate's plus the contrast between its units.

        Â = ω·[A + λ·s·L·d_j]

    Args:
        advantage: A of the candidate.
        contrasts: d, shape (m,), float64, reward units per token, as `unit_contrasts`.
        n_tokens: L, tokens of the candidate that the policy chose.
        slope: s, advantage per reward unit: what A gains by one more of the candidate's credit, K_g/denominator.
        share: λ in [0, 1]. 1: the mean advantage of unit j is what its credit says; 0: all tokens get ω·A.
        length_weight: ω.

    Returns:
        Shape (m,), float64. Σ ℓ_j·Â_j = M for any x, and no ratio of credits is formed, so that credits that cancel or
        vanish do no harm. Signs may differ from A's: a unit that makes a good candidate worse is discouraged.

    Cost:
        O(m).
    """
    raised: Floats = length_weight * (advantage + share * slope * n_tokens * contrasts)
    return raised


def bounded_advantages(
    advantage: float, contrasts: Floats, *, share: float = 0.5, length_weight: float = 1.0
) -> Floats:
    """Advantage of the tokens of each unit, within |λ·A| of the candidate's.

        Â = ω·[A + |A|·λ·d_j/max|d|];     all d = 0: Â = ω·A

    Args:
        advantage: A of the candidate.
        contrasts: d, shape (m,), float64, as `unit_contrasts`.
        share: λ in [0, 1].
        length_weight: ω > 0.

    Returns:
        Shape (m,), float64. Signed and absolute mass of the candidate are kept, no sign is turned, and A = 0 stays 0.

    Cost:
        O(m).
    """
    largest = float(np.abs(contrasts).max(initial=0.0))
    if largest == 0.0:
        return np.full(len(contrasts), length_weight * advantage)
    shifted: Floats = length_weight * (advantage + abs(advantage) * (share * (contrasts / largest)))
    return shifted
