"""Times of exact Shapley values of tables, against shap and shapiq in the same run, and of the closed form of max.

    PYTHONPATH=service:tests python tests/benchmarks/tables.py --out FILE

NumPy, creditd.credit and, for the comparison, shap and shapiq have to be importable; a peer that is missing is reported
as skipped. Peers evaluate a function that looks utilities up in the same table, one vectorised call per batch of
coalitions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.measure import Timing, arguments, device, on_one_thread, ratio, repeated, versions, write_report
from creditd.credit import Max, semivalues, table_semivalues

TABLES = {8: 4096, 12: 256, 16: 16, 18: 4, 20: 1}
"""Players, and tables in one batch."""
PEER_PLAYERS = (8, 12, 16)
REPEATS = {8: 31, 12: 15, 16: 3}
"""Repeats of a peer by the number of players; with 16, where one call takes up to seconds, few have to tell."""
PEER_LIMIT_S = 60.0
"""A peer expected to need longer for one game is skipped."""
GROWTH = 32.0
"""Most that four more players multiply the time of a peer by: 16 times the coalitions, and more work for each."""
OUTPUTS = {8: 256, 12: 16, 16: 1}
"""Games that shap solves at once when each is an output of one model."""
SETS, CANDIDATES = 4096, 8

Solve = Callable[[np.ndarray], np.ndarray]
"""Shapley values (n, games) of tables (2ⁿ, games)."""


def shap_solver(n: int) -> Solve:
    """`shap.explainers.Exact`, built once; all games at once, as outputs of one model."""
    import shap  # a peer may be absent

    bits = 1 << np.arange(n)
    current: list[np.ndarray] = []
    explainer = shap.explainers.Exact(
        lambda rows: current[0][rows.astype(np.int64) @ bits], shap.maskers.Independent(np.zeros((1, n)))
    )
    ones = np.ones((1, n))

    def solve(tables: np.ndarray) -> np.ndarray:
        current[:] = [tables[:, 0] if tables.shape[1] == 1 else tables]
        return explainer(ones, max_evals=1 << n).values[0].reshape(n, -1)

    return solve


def shapiq_solver(n: int) -> Solve:
    """`shapiq.ExactComputer` with index "SV", a new one for each game, because it keeps the values of its game."""
    import shapiq  # a peer may be absent

    bits = 1 << np.arange(n)

    def solve(tables: np.ndarray) -> np.ndarray:
        columns = []
        for table in tables.T:
            computer = shapiq.ExactComputer(lambda rows, table=table: table[rows.astype(np.int64) @ bits], n)
            values = computer("SV", order=1)
            columns.append([values[(i,)] for i in range(n)])
        return np.array(columns).T

    return solve


PEERS = {
    "shap Exact": (shap_solver, dict.fromkeys(PEER_PLAYERS, 1)),
    "shap Exact, games as outputs": (shap_solver, OUTPUTS),
    "shapiq ExactComputer": (shapiq_solver, dict.fromkeys(PEER_PLAYERS, 1)),
}
"""Peers: how to make one for n players, and how many games one call solves."""


def time_tables(n: int, tables: np.ndarray) -> Timing:
    """Our time per game."""
    q = np.full(n, 1.0 / n)
    return repeated(lambda: table_semivalues(tables, q), units=len(tables), repeats=31, warm_up=3)


def time_peer(solve: Solve, n: int, games: np.ndarray) -> Timing:
    """A peer's time per game; games (2ⁿ, number)."""
    return repeated(lambda: solve(games), units=games.shape[1], repeats=REPEATS[n], warm_up=1)


def compare(ours: dict[int, Timing], tables: dict[int, np.ndarray]) -> list[dict[str, Any]]:
    """Every peer at every size: its time, how many times ours that is, and how far the values differ."""
    results = []
    for name, (make, calls) in PEERS.items():
        seconds = 0.0
        for n in PEER_PLAYERS:
            result: dict[str, Any] = {"peer": name, "players": n, "games_per_call": calls[n]}
            results.append(result)
            if seconds * GROWTH > PEER_LIMIT_S:
                result["skipped"] = (
                    f"expected to take over {PEER_LIMIT_S:.0f} s, from {seconds:.2f} s with n - 4 players"
                )
                print(f"n = {n:2}  {name}: {result['skipped']}")
                continue
            try:
                solve = make(n)
            except ModuleNotFoundError as missing:
                result["skipped"] = str(missing)
                print(f"n = {n:2}  {name}: {missing}")
                continue
            games = tables[n][: calls[n]].T
            timing = time_peer(solve, n, games)
            seconds = timing.median_us * calls[n] / 1e6
            values = table_semivalues(tables[n][: calls[n]], np.full(n, 1.0 / n))
            difference = float(np.abs(solve(games).T - values).max() / np.abs(games).max())
            result |= {"per_game": timing, "times_ours": ratio(timing, ours[n]), "largest_difference": difference}
            times = result["times_ours"]
            print(
                f"n = {n:2}  {name}: {timing} per game, {times['of_medians']:,.0f} times ours "
                f"(nearest quartiles {times['of_nearest_quartiles']:,.0f}), values within {difference:.1e} of the scale"
            )
    return results


def main() -> None:
    """Measure, print and write."""
    on_one_thread()
    options = arguments("Exact Shapley values of tables, against shap and shapiq")
    # Peers warn of deprecations of their own.
    warnings.simplefilter("ignore")
    random = np.random.default_rng(0)
    tables = {n: random.normal(size=(batch, 1 << n)) for n, batch in TABLES.items()}
    ours = {n: time_tables(n, tables[n]) for n in TABLES}
    for n, timing in ours.items():
        print(f"n = {n:2}  table_semivalues: {timing} per game")
    rewards = random.normal(size=(SETS, CANDIDATES))
    q = np.full(CANDIDATES, 1.0 / CANDIDATES)
    of_max = repeated(lambda: semivalues(rewards, Max(), q), units=SETS, repeats=31, warm_up=3)
    print(f"max over {SETS} sets of {CANDIDATES}: {of_max} per set")
    peers = compare(ours, tables)
    report = {
        "benchmark": "tables",
        "device": device(),
        "versions": versions(["creditd", "numpy", "shap", "shapiq"]),
        "table_semivalues": [{"players": n, "tables": TABLES[n], "per_game": timing} for n, timing in ours.items()],
        "peers": peers,
        "max": {"sets": SETS, "candidates": CANDIDATES, "per_set": of_max},
    }
    write_report(options.out, report)


if __name__ == "__main__":
    main()
