"""Error of Shapley estimators at equal numbers of distinct evaluations: creditd against shapiq.

    PYTHONPATH=service:tests python tests/benchmarks/estimators.py --out FILE [--seeds 10] [--minutes 10]

Runs in an environment with NumPy and shapiq ≥ 1.8 (Python ≥ 3.12; xgboost for its proxies, no torch), with
creditd.credit on the path. Error is MSE over the players divided by the variance of the true values, averaged over
games (a new game and a new plan per seed). An estimator that asks for a coalition twice pays once.
Utilities: facility location, plurality votes, sums of unanimity games, log-sum-exp. `max` is not among them, because
creditd's proxy contains it.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import shapiq
from numpy.typing import NDArray

from benchmarks.candidate_games import GAMES, Game, game
from benchmarks.measure import device, on_one_thread, versions, write_report
from creditd.credit import permutation_estimate, permutation_plan, stratified_estimate, stratified_plan

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

CELLS = ((12, 256), (12, 512), (20, 512), (20, 2048), (50, 512), (50, 2048))
"""Players and distinct evaluations."""
CLOSE_ENOUGH = 0.97
"""Share of the budget that an estimator has to use before it is run again with a larger one."""


class CountedGame:
    """A game that remembers what it was asked: how many distinct coalitions."""

    def __init__(self, source: Game, n_players: int) -> None:
        self.n_players = n_players
        self.normalization_value = 0.0
        self._source = source
        self._known: dict[bytes, float] = {}

    def __call__(self, coalitions: Booleans) -> Floats:
        """Utilities of coalitions."""
        rows = np.atleast_2d(np.asarray(coalitions, dtype=bool))
        keys = [row.tobytes() for row in rows]
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._known}
        if new:
            self._known.update(zip(new, self._source.utilities(np.stack(list(new.values()))).tolist(), strict=True))
        return np.array([self._known[key] for key in keys])

    @property
    def distinct(self) -> int:
        """Number of distinct coalitions evaluated."""
        return len(self._known)


Estimator = Callable[[CountedGame, int, int], Floats]


def stratified(played: CountedGame, budget: int, seed: int) -> Floats:
    """The default of creditd."""
    plan = stratified_plan(played.n_players, budget, seed)
    return stratified_estimate(plan, played(plan), seed=seed).shapley_values


def permutations(played: CountedGame, budget: int, seed: int) -> Floats:
    """The audit mode of creditd."""
    plan = permutation_plan(played.n_players, budget, seed)
    return permutation_estimate(plan, played(plan), seed=seed).shapley_values


def of_shapiq(name: str, **options: object) -> Estimator:
    """An estimator of shapiq, by the name of its class."""

    def run(played: CountedGame, budget: int, seed: int) -> Floats:
        approximator = getattr(shapiq.approximator, name)(n=played.n_players, random_state=seed, **options)
        return np.asarray(approximator.approximate(budget, played).get_n_order_values(1), dtype=np.float64)

    return run


def partial_polynomial(played: CountedGame, budget: int, seed: int) -> Floats:
    """PolySHAP with as many interactions, of any order, as half the budget."""
    return of_shapiq("PolySHAP", max_terms=budget // 2, pairing_trick=True)(played, budget, seed)


ESTIMATORS: dict[str, Estimator] = {
    "creditd stratified": stratified,
    "creditd permutations": permutations,
    "PermutationSamplingSV": of_shapiq("PermutationSamplingSV"),
    "StratifiedSamplingSV": of_shapiq("StratifiedSamplingSV"),
    "OwenSamplingSV": of_shapiq("OwenSamplingSV"),
    "KernelSHAP": of_shapiq("KernelSHAP"),
    "KernelSHAP paired": of_shapiq("KernelSHAP", pairing_trick=True),
    "LeverageSHAP": of_shapiq("LeverageSHAP"),
    "UnbiasedKernelSHAP paired": of_shapiq("UnbiasedKernelSHAP", pairing_trick=True),
    "SVARM paired": of_shapiq("SVARM", pairing_trick=True),
    "SVARMIQ paired": of_shapiq("SVARMIQ", index="SV", max_order=1, pairing_trick=True),
    "SHAPIQ paired": of_shapiq("SHAPIQ", index="SV", max_order=1, pairing_trick=True),
    "KernelSHAPIQ paired": of_shapiq("KernelSHAPIQ", index="SV", max_order=1, pairing_trick=True),
    "InconsistentKernelSHAPIQ paired": of_shapiq(
        "InconsistentKernelSHAPIQ", index="SV", max_order=1, pairing_trick=True
    ),
    "RegressionFSII paired": of_shapiq("RegressionFSII", max_order=1, pairing_trick=True),
    "kADDSHAP paired": of_shapiq("kADDSHAP", max_order=2, pairing_trick=True),
    "PolySHAP paired": of_shapiq("PolySHAP", max_order=2, pairing_trick=True),
    "PolySHAP partial paired": partial_polynomial,
    "OddSHAP": of_shapiq("OddSHAP"),
    "RegressionMSR xgboost": of_shapiq("RegressionMSR", index="SV"),
    "RegressionMSR linear": of_shapiq("RegressionMSR", index="SV", proxy_model="linear"),
    "ProxySHAP": of_shapiq("ProxySHAP", index="SV", max_order=1),
    "ProxySHAP adjusted": of_shapiq("ProxySHAP", index="SV", max_order=1, adjustment=True),
    "ProxySPEX": of_shapiq("ProxySPEX", index="SV", max_order=1, hpo=False),
}
NOT_RUN = {
    "ShaplEIG": "needs torch and botorch",
    "SPEX": "an estimator of interactions for hundreds of players",
    "PermutationSamplingSII, PermutationSamplingSTII, RegressionFBII": "estimate interactions or Banzhaf values",
}


def estimate(run: Estimator, source: Game, n_players: int, budget: int, seed: int) -> tuple[Floats, int]:
    """The estimate with the most distinct evaluations within the budget, and their number."""
    asked, best, used = budget, None, 0
    for _ in range(4):
        played = CountedGame(source, n_players)
        values = run(played, asked, seed)
        if played.distinct > budget and best is not None:
            break
        best, used = values, played.distinct
        if used >= CLOSE_ENOUGH * budget:
            break
        asked = int(asked * budget / used)
    assert best is not None
    return best, used


def main() -> None:
    """Run all cells seed after seed until seeds or minutes are used up, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", nargs="*", default=list(ESTIMATORS))
    options = parser.parse_args()
    on_one_thread()
    warnings.simplefilter("ignore")
    names = [name for name in ESTIMATORS if name in options.only]
    errors: dict[str, dict[str, list[float]]] = {}
    seconds: dict[str, dict[str, list[float]]] = {}
    distinct: dict[str, dict[str, list[int]]] = {}
    failures: dict[str, str] = {}
    started = time.perf_counter()
    seeds_done = 0
    for seed in range(options.seeds):
        for kind in GAMES:
            for n_players, budget in CELLS:
                cell = f"{kind} n={n_players} R={budget}"
                source = game(kind, n_players, seed)
                truth = source.shapley_values
                for name in names:
                    if f"{cell}: {name}" in failures:
                        continue
                    before = time.perf_counter()
                    try:
                        values, used = estimate(ESTIMATORS[name], source, n_players, budget, seed)
                    except Exception as error:  # noqa: BLE001 - a peer that cannot run is named in the result
                        failures[f"{cell}: {name}"] = f"{type(error).__name__}: {error}"[:300]
                        continue
                    error = float(((values - truth) ** 2).mean() / truth.var())
                    errors.setdefault(cell, {}).setdefault(name, []).append(error)
                    seconds.setdefault(cell, {}).setdefault(name, []).append(time.perf_counter() - before)
                    distinct.setdefault(cell, {}).setdefault(name, []).append(used)
        seeds_done = seed + 1
        if time.perf_counter() - started > 60.0 * options.minutes * seeds_done / (seeds_done + 1):
            break
    report(errors, seconds, names, failures, seeds_done)
    if options.out:
        result = {
            "benchmark": "estimators",
            "device": device(),
            "versions": versions(["numpy", "shapiq", "xgboost"]),
            "seeds": seeds_done,
            "nmse": errors,
            "seconds": seconds,
            "distinct": distinct,
            "failures": failures,
            "not_run": NOT_RUN,
        }
        write_report(options.out, result)


def report(
    errors: dict[str, dict[str, list[float]]],
    seconds: dict[str, dict[str, list[float]]],
    names: list[str],
    failures: dict[str, str],
    seeds: int,
) -> None:
    """Print nMSE per cell, geometric means, and the best of shapiq per cell."""
    means = {cell: {name: float(np.mean(values)) for name, values in row.items()} for cell, row in errors.items()}
    complete = [name for name in names if all(name in row for row in means.values())]
    print(
        f"nMSE, mean of {seeds} seeds: geometric mean over {len(means)} cells; the same without log-sum-exp, which is"
    )
    print("close to a maximum; median milliseconds at n=20 R=2048")
    summary = []
    for name in complete:
        everything = _geometric_mean([row[name] for row in means.values()])
        rough = _geometric_mean([row[name] for cell, row in means.items() if not cell.startswith("log_sum_exp")])
        times = [value for cell, row in seconds.items() if "n=20 R=2048" in cell for value in row[name]]
        summary.append((everything, rough, name, 1e3 * float(np.median(times)) if times else math.nan))
    for everything, rough, name, milliseconds in sorted(summary):
        print(f"  {name:34s} {everything:.5f}  {rough:.5f}  {milliseconds:9.1f}")
    print("per cell: creditd stratified, best of shapiq, ratio")
    for cell, row in means.items():
        peers = {name: value for name, value in row.items() if not name.startswith("creditd")}
        ours = row.get("creditd stratified")
        if peers and ours is not None:
            best = min(peers, key=lambda name: peers[name])
            print(f"  {cell:32s} {ours:.5f}  {peers[best]:.5f} ({best})  {peers[best] / ours:.2f}")
    for name, failure in failures.items():
        print(f"failed: {name}: {failure}")
    for name, reason in NOT_RUN.items():
        print(f"not run: {name}: {reason}")


def _geometric_mean(values: list[float]) -> float:
    """Of positive numbers; errors of exact estimates count as 1e-300."""
    return math.exp(sum(math.log(max(value, 1e-300)) for value in values) / len(values))


if __name__ == "__main__":
    main()
