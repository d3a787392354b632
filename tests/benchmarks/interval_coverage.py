"""How often the 95 % intervals of the estimators hold the true Shapley values.

    PYTHONPATH=service:tests python tests/benchmarks/interval_coverage.py --out FILE [--seeds 400] [--players 11 12 20]

A cell is a game, a number of players and of evaluations; its plans differ by their seeds. Promised from 30 evaluations
per player (256 antithetic pairs of permutations in audit mode): between .92 and .98 on average over players, no player
below .85. Sampling error of 400 seeds: about .011 per player and less on the average.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.candidate_games import GAMES, MAXIMUM, game
from benchmarks.measure import device, on_one_thread, versions, write_report
from creditd.credit import permutation_estimate, permutation_plan, stratified_estimate, stratified_plan
from creditd.credit.coalition_plans import permutation_walks

PROMISED_MEAN = (0.915, 0.985)
"""Average over players: .92 to .98, widened by the sampling error of 400 seeds."""
PROMISED_PLAYER = 0.85
NO_ERROR = 1e-12
"""A game that the proxy spans has estimates without an error, and intervals that always hold."""
PER_PLAYER = (5, 10, 20, 30, 60)
"""Evaluations per player of the cells."""
PROMISED_FROM = 30
AUDIT_PAIRS = 256


@dataclass(frozen=True)
class Coverage:
    """One cell.

    Attributes:
        kind: Game.
        n_players: Players.
        evaluations: Distinct evaluations of the first plan.
        method: "stratified" or "permutations".
        seeds: Plans.
        with_interval: Share of the plans that have an interval.
        mean: Coverage averaged over players, of the plans that have one; None if none has.
        lowest: Coverage of the worst player; None likewise.
        nmse: MSE over the variance of the true values.
        error_ratio: Root mean square of the standard errors over that of the errors; None without standard errors.
        promised: Whether the promise covers the cell.
    """

    kind: str
    n_players: int
    evaluations: int
    method: str
    seeds: int
    with_interval: float
    mean: float | None
    lowest: float | None
    nmse: float
    error_ratio: float | None
    promised: bool

    @property
    def holds(self) -> bool:
        """Whether the promise is kept, or not made."""
        if not self.promised:
            return True
        assert self.mean is not None
        assert self.lowest is not None
        at_most = 1.0 if self.nmse < NO_ERROR else PROMISED_MEAN[1]
        return PROMISED_MEAN[0] <= self.mean <= at_most and self.lowest >= PROMISED_PLAYER


def evaluations_of_pairs(n_players: int, pairs: int, seed: int) -> int:
    """Distinct evaluations of so many antithetic pairs of permutations."""
    _, orders, walks = permutation_walks(n_players, min(2 * pairs * n_players, 2**n_players - 1), seed)
    return int(walks[min(pairs, len(orders)) - 1].max()) + 1 if len(orders) < pairs else int(walks[:pairs].max()) + 1


def coverage(
    kind: str, n_players: int, evaluations: int | None, seeds: int, game_seed: int = 0, first_seed: int = 0
) -> Coverage:
    """One cell; evaluations None is the audit mode with 256 pairs."""
    source = game(kind, n_players, game_seed)
    truth = source.shapley_values
    hits, squares, variances, errors_of = np.zeros(n_players), 0.0, 0.0, 0
    intervals = 0
    used = evaluations or 0
    for seed in range(first_seed, first_seed + seeds):
        if evaluations is None:
            plan = permutation_plan(n_players, evaluations_of_pairs(n_players, AUDIT_PAIRS, seed), seed)
            result = permutation_estimate(plan, source.utilities(plan), seed=seed)
        else:
            plan = stratified_plan(n_players, evaluations, seed)
            result = stratified_estimate(plan, source.utilities(plan), seed=seed)
        used = len(plan) if seed == first_seed else used
        squares += float(((result.shapley_values - truth) ** 2).mean())
        if result.standard_errors is not None:
            variances += float((result.standard_errors**2).mean())
            errors_of += 1
        if result.intervals is not None:
            intervals += 1
            hits += (result.intervals[:, 0] <= truth) & (truth <= result.intervals[:, 1])
    per_player = hits / max(intervals, 1)
    return Coverage(
        kind=kind,
        n_players=n_players,
        evaluations=used,
        method="permutations" if evaluations is None else "stratified",
        seeds=seeds,
        with_interval=intervals / seeds,
        mean=float(per_player.mean()) if intervals else None,
        lowest=float(per_player.min()) if intervals else None,
        nmse=squares / seeds / float(truth.var()),
        error_ratio=float(np.sqrt(variances / squares)) if errors_of == seeds and squares > 0 else None,
        promised=kind != MAXIMUM and (evaluations is None or evaluations >= PROMISED_FROM * n_players),
    )


def main() -> None:
    """Run all cells, print those that miss the promise, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=400)
    parser.add_argument("--players", type=int, nargs="*", default=[11, 20])
    parser.add_argument("--per-player", type=int, nargs="*", default=list(PER_PLAYER))
    parser.add_argument("--games", nargs="*", default=[*GAMES, MAXIMUM])
    parser.add_argument("--game-seed", type=int, default=0)
    options = parser.parse_args()
    on_one_thread()
    cells: list[Coverage] = []
    for n_players in options.players:
        for kind in options.games:
            for per_player in (*options.per_player, None):
                started = time.perf_counter()
                evaluations = None if per_player is None else per_player * n_players
                cell = coverage(kind, n_players, evaluations, options.seeds, options.game_seed)
                cells.append(cell)
                print(
                    f"n={n_players} {kind:18s} {cell.method:12s} R={cell.evaluations:5d}"
                    f" intervals={cell.with_interval:.2f}"
                    + ("" if cell.mean is None else f" mean={cell.mean:.3f} lowest={cell.lowest:.3f}")
                    + ("" if cell.error_ratio is None else f" se/rmse={cell.error_ratio:.2f}")
                    + f" nMSE={cell.nmse:.2e}{'' if cell.holds else '  MISSED'}  {time.perf_counter() - started:.1f} s",
                    flush=True,
                )
    missed = [cell for cell in cells if not cell.holds]
    print(f"{len(cells)} cells, {sum(cell.promised for cell in cells)} promised, {len(missed)} missed")
    if options.out:
        result = {
            "benchmark": "interval_coverage",
            "device": device(),
            "versions": versions(["numpy"]),
            "cells": [asdict(cell) | {"holds": cell.holds} for cell in cells],
        }
        write_report(options.out, result)


if __name__ == "__main__":
    main()
