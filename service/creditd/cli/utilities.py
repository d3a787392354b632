"""The catalogue of utilities as Markdown: the page UTILITIES.md and the output of `creditd utilities`."""

from __future__ import annotations

from pydantic_core import to_json

from creditd.wire.catalogue import CATALOGUE, UtilityEntry

_HEAD = """\
# Utilities

What a set of candidates is worth, by name. Each is exact in polynomial time (but `log_det` and `table`, which look at
all 2^K sets); any weighted sum of them is exact in one request (`sum` with `terms`). A utility that is none of these is
a table of 2^K values, or a function of yours that creditd asks about as few sets as a budget allows: see the end of
this page. It is what `creditd utilities` prints, and what `GET /v1/utilities` answers as JSON.

**Notation.** r is the reward of a candidate, S a set of s candidates, N all K of them, v(∅) the utility of no
candidate, in units of the utility. v(∅) is always explicit: for utilities with no natural one it is required.

**What is climbed.** Credit shares out v(N) − v(∅); used as an advantage it climbs an objective, if the candidates of a
set are independent draws of the policy: `leave_one_out` climbs E v(K candidates), which each section below names;
`shapley` climbs Σ_k (1/k)·E v(k candidates), the same with smaller sets mixed in; `own_reward` climbs E v(1 candidate);
`max_at_k` with k climbs E v(k candidates). Centring on the group subtracts the response's own credit, 1/(G·K) of the
sum (`"baseline": "others"` does not), and dividing by a standard deviation reweights prompts. Candidates that one
response writes one after another are **not** independent: then `prefix_gain` is unbiased for E v(N) in the order
written, and the others are not.
"""

_TAIL = """\
## Any other function

Utilities that only you can evaluate (a judge, a test suite, a reward model elsewhere) need no formula. In Python:

    from creditd.client import Client, Evaluator

    def utility(candidates):                      # any of a set's candidates; the empty list is v(∅)
        return float(len(set(" ".join(candidates).split())))

    with Client("local:") as client:              # or the address of a service: the function stays here
        result = client.shapley(
            [["red green", "green blue", "red"]],
            utility=Evaluator(utility, concurrency=4),
            estimator={"budget": 256, "seed": 0},
        )
    print(result.credits.to_list(), result.exact, result.evaluations)

All 2^K sets are evaluated where the budget allows, and the credit is exact. Otherwise a sample of pairs of
complementary sets is, in a plan that is fixed by K and seed; the credit then has a standard error and a 95 % interval
per candidate. From 30·K evaluations on, with a fixed budget, the interval holds the true credit with .92 to .98 on
average over candidates in the games that the tests try: facility location, votes, sums of unanimity games, log-sum-exp,
K = 11 to 20. Where the utility is nearly a maximum, what no sampled set shows can be larger than the interval says: it
is widened for that, and holds with .9 and more on average in the benchmark, single candidates less. From 10·K on, and
after early stopping, it carries the flag `interval_approximate`; below it there is none.
`{"type": "permutations"}` is the audit mode: antithetic orders, no modelling. `target_standard_error` stops early.
Without Python, `POST /v1/credit/shapley/solve` does the same: what is known goes in, the sets to evaluate next come
out, until the answer is `done`; the service keeps nothing in between but what stands under a `utility_id`: that is
not asked for again where a plan asks for it (`client.shapley(…, utility_id="judge-v3", prompts=…)`), and changes no
number. All 2^K utilities make any estimate exact if one request says them all, and not if they are remembered.
"""


def page() -> str:
    """The page.

    Returns:
        Markdown: a table of all utilities, one section for each with a request that works, and what to do beyond them.
    """
    entries = CATALOGUE.utilities
    rows = [f"| [`{entry.name}`](#{entry.name}) | {_cell(entry.formula)} | {entry.cost} |" for entry in entries]
    table = "\n".join(["| `type` | v(S) | cost of a set |", "|---|---|---|", *rows])
    sections = "\n".join(_section(entry) for entry in entries)
    return f"{_HEAD}\n{table}\n\n{sections}\n{_TAIL}"


def _section(entry: UtilityEntry) -> str:
    body = to_json(entry.example).decode()
    needs = ", ".join(f"`{need}`" for need in entry.needs)
    return f"""\
### {entry.name}

- **v(S)** = {entry.formula}
- **v(∅)**: {entry.empty}
- **needs** {needs}
- **credits**: {entry.rules}
- **climbs** {entry.objective}
- **if** {entry.assumption}
- **costs** {entry.cost} for one set

      curl -s localhost:8400/v1/credit/shapley -H 'content-type: application/json' \\
        -d '{body}'
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
