"""Everything that a client does but the sending: requests, attempts, answers. In local mode nothing is sent at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from creditd.client import answers, evaluation, local
from creditd.client.arrays import Column, Rows, Sets, refusal
from creditd.client.attempts import checked_request_id
from creditd.client.bodies import (
    Body,
    Choice,
    Options,
    choice,
    encoded,
    names_of_sets,
    set_columns,
    wanted_by,
)
from creditd.client.compose_operations import ComposeOperations
from creditd.client.compose_results import ComposeResult
from creditd.client.conversations import OnItemError, check_choice, refuse_unused, settled
from creditd.client.evaluation import SOLVE_PATH, Games, games_of, named
from creditd.client.evaluators import Evaluator
from creditd.client.exchanges import COMPOSE_PATH, GROUP_PATH, OAR_PATH, SCAR_PATH, SHAPLEY_PATH, body_of
from creditd.client.group_bodies import group_rewards, token_counts
from creditd.client.mappings import Name
from creditd.client.model_choices import model_choice, told_by_models
from creditd.client.oar_operations import OarOperations
from creditd.client.oar_results import OarResult
from creditd.client.results import GroupResult, ShapleyResult
from creditd.client.scar_operations import ScarOperations
from creditd.client.scar_results import ScarResult
from creditd.client.steps import Exchange, Steps
from creditd.client.weights_operations import WeightsOperations


class Operations(ScarOperations, OarOperations, ComposeOperations, WeightsOperations):
    """What a client can be asked, as steps; `Conversations` has its attributes."""

    def shapley(
        self,
        sets: Sets | None = None,
        *,
        groups: Column | None = None,
        ids: Column | None = None,
        spans: Column | None = None,
        n_tokens: Column | None = None,
        set_rewards: Column | None = None,
        utilities: Rows | None = None,
        texts: Column | None = None,
        prompts: Column | None = None,
        prompt_ids: Column | None = None,
        candidate_ids: Column | None = None,
        labels: Column | None = None,
        topics: Column | None = None,
        scores: Column | None = None,
        similarities: Column | None = None,
        unions: Column | None = None,
        rewards: Choice | None = None,
        features: Choice | None = None,
        utility: Choice | Evaluator | Callable[..., Any] = "max",
        utility_id: Name | None = None,
        aggregation: Choice | None = None,
        credit: Choice = "shapley",
        advantage: Choice = "pooled",
        tokens: Options | None = None,
        malformed: Options | None = None,
        expect: Options | None = None,
        estimator: Choice | None = None,
        incomplete_group: Literal["flag", "error"] = "flag",
        deterministic: bool = False,
        on_item_error: OnItemError = "raise",
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Steps[ShapleyResult]:
        """Credit of the candidates of each set, and their advantages within the group of sets that answer one prompt.

        Args:
            sets: B sets: lists of rewards (None: not scored), an array of shape (B, K), `Ragged`, or these by name of
                the reward; or mappings in the shape of `creditd.wire.v1.CandidateSet`, which carry what the columns
                below would. None where the utility needs no rewards, or a model gives them.
            groups: Names of the prompts, one per set. None: each set stands alone.
            ids: Names of the sets. They come back with the result and are not sent.
            spans: Token ranges: per set one [start, stop] or None per candidate; or an array of shape (candidates, 2).
            n_tokens: Completion tokens, one number per set.
            set_rewards: Rewards of whole responses (format, length, safety), one number or None per set.
            utilities: For the table utility, 2^K values per set; bit i of the index is candidate i, entry 0 is v(∅).
            texts: Per set one text or None per candidate: what a model reads, None for a candidate that is not scored;
                recognises duplicates beside. Or flat over all sets, where another column tells their sizes.
            prompts: What the candidates of each set answer, for a reward model: a text that is read as it is, or a list
                of messages with `role` and `content`, which go through the model's chat template. For a function with a
                `utility_id`, a digest of each is sent.
            prompt_ids: Names of the prompts instead, by their content, for a function with a `utility_id`; the same one
                everywhere if it looks at no prompt.
            candidate_ids: Per set one name per candidate; or flat over all sets. Tables are solved in their order, and
                the coalitions of a function are sampled in it: then the order of the candidates changes no bit. Under a
                `utility_id` they name candidates by their content; None: digests of the candidates, which are texts.
            labels: The answer of each candidate, set by set or flat over all sets; for `plurality`.
            topics: A list per candidate of what it covers, set by set or flat; for `coverage`.
            scores: A row per candidate of what it is worth to each target, set by set, flat, or an array of shape (B,
                K, T); for `facility_location` and `noisy_or`.
            similarities: A symmetric K × K matrix per set, or an array of shape (B, K, K); for the utilities of pairs
                and `log_det`.
            unions: The union of each candidate, set by set or flat; for the credit `owen`.
            rewards: A reward model of the service scores each candidate once: its id (`GET /v1/models`), or a mapping
                as `creditd.wire.v1.ModelRewards`. Needs `prompts` and `texts`. None: the sets have rewards.
            features: An embedding model of the service tells scores, topics or similarities: its id, or a mapping as
                `creditd.wire.v1.EmbeddingFeatures`. Needs `texts`. None: the sets have them.
            utility: What a set is worth, a name or a mapping such as `{"type": "top_m", "m": 2}`; or a function
                `f(candidates) -> float` of any of a set's candidates, or an `Evaluator` of one: then `sets` are lists
                of candidates of any type, and the function runs in this process, of which the deadline counts nothing.
                `{"type": "model", "model": "rm"}` has a reward model of the service judge every coalition.
            utility_id: Names the function with its version, such as `"judge-v3"`: the service then remembers what it
                gave (for this API key, by the names of prompt and candidates), and does not ask for that again;
                `result.usage.from_cache` counts it. Change it whenever the function, or what it reads, changes: an old
                name gives old numbers. The function may look at the candidates and the prompt alone, and not at the
                order of the candidates. Local mode remembers nothing.
            aggregation: How several named rewards become one credit, a name or a mapping with `type` and `weights`.
            credit: Which rule shares it out.
            advantage: How credits become advantages.
            tokens: What the tokens of a completion receive, as `creditd.wire.v1.TokensChoice`. None: none is asked for.
            malformed: What happens to sets that are not as the prompt asked, as `creditd.wire.v1.MalformedChoice`.
            expect: What the caller is sure of: `{"group_size": 8, "candidates": 4}`. Anything else is an error.
            estimator: How the value of a function or a model is found, as `creditd.wire.v1.EstimatorChoice`: a name or
                a mapping with `type`, `budget` per set, `seed`, `target_standard_error`.
            incomplete_group: What happens to the other sets of a group that lost one to an error.
            deterministic: Whether a model reads this request by itself, so that others of its batch change no bit.
            on_item_error: Raise when some sets have no answer, or return the others with `errors` saying why.
            deadline_s: Seconds allowed for everything, waits and retries included. None: the client's.
            request_id: Identity of the request in logs, at most 64 of `A–Z a–z 0–9 . _ : -`. None: a new one.

        Returns:
            Credits, advantages and more, row by row as the sets came.

        Raises:
            InvalidRequestError: If the request is wrong, or none of its sets could be answered.
            NotFoundError: If the service has no such model; local mode has none at all.
            PartialResultError: If some sets have no answer; `result` holds the others.
            TransportError: If no answer came.
            DeadlineExceededError: If none came in time.
            StatusError: If the service refused or failed; its subclasses say how.
            ResponseError: If the answer is not in the schema of this client.
        """
        check_choice("on_item_error", on_item_error, ("raise", "return"))
        extras = {
            "groups": groups,
            "ids": ids,
            "spans": spans,
            "n_tokens": n_tokens,
            "set_rewards": set_rewards,
            "utilities": utilities,
            "texts": texts,
            "prompts": prompts,
            "candidate_ids": candidate_ids,
            "labels": labels,
            "topics": topics,
            "scores": scores,
            "similarities": similarities,
            "unions": unions,
        }
        if isinstance(utility, Evaluator) or callable(utility):
            refuse_unused(
                {
                    "aggregation": aggregation,
                    "malformed": malformed,
                    "rewards": rewards,
                    "features": features,
                    "deterministic": deterministic or None,
                }
            )
            columns = {name: column for name, column in extras.items() if name not in {"ids", "prompts"}}
            games = games_of(sets, columns, tokens=tokens is not None)
            result = yield from self._evaluated(
                utility if isinstance(utility, Evaluator) else Evaluator(utility),
                named(games, utility_id, prompts, prompt_ids),
                {
                    "utility_id": utility_id,
                    "credit": choice(credit),
                    "advantage": choice(advantage),
                    "tokens": tokens,
                    "expect": expect,
                    "estimator": None if estimator is None else choice(estimator),
                    "incomplete_group": incomplete_group,
                },
                None if ids is None else names_of_sets(ids, "ids"),
                deadline_s,
                request_id,
            )
            return settled(result, result.ids, on_item_error)
        for name, value in (("utility_id", utility_id), ("prompt_ids", prompt_ids)):
            if value is not None:
                raise refusal(f"/{name}", "got a name beside a utility that is no function of yours; expected None")
        told = {"rewards": model_choice(rewards), "features": model_choice(features, "embedding")}
        wanted = wanted_by(utility, credit, tokens=tokens is not None)
        found = set_columns(sets, extras, told_by_models(wanted, utility, **told))
        content = encoded(
            {
                "columns": found.columns,
                **told,
                "utility": choice(utility),
                "aggregation": None if aggregation is None else choice(aggregation),
                "credit": choice(credit),
                "advantage": choice(advantage),
                "tokens": tokens,
                "malformed": malformed,
                "expect": expect,
                "estimator": None if estimator is None else choice(estimator),
                "incomplete_group": incomplete_group,
                "deterministic": deterministic or None,
            },
            self.media_type,
        )
        body = Body(content=content, row_splits=found.row_splits, ids=found.ids, media_type=self.media_type)
        result = yield from self._shapley(body, deadline_s, request_id)
        return settled(result, result.ids, on_item_error)

    def group(
        self,
        rewards: Rows | Mapping[str, Rows],
        *,
        weights: Mapping[str, float] | None = None,
        n_tokens: Rows | None = None,
        convention: Literal["trl", "verl", "openrlhf"] = "trl",
        advantage: Choice = "grpo",
        expect: Options | None = None,
        on_item_error: OnItemError = "raise",
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Steps[GroupResult]:
        """Advantages of whole responses: the baselines that every credit is compared with.

        Args:
            rewards: One row per prompt, one number or None per response; lists, an array of shape (B, G), or `Ragged`.
                Or a mapping with such rows by the name of a reward.
            weights: Weights of named rewards. A name that is not here has weight 1.
            n_tokens: Trainable tokens of each response, rows as in the rewards, for a whitening that counts them.
            convention: Whose ε is added to the standard deviation, and whose whitening follows.
            advantage: `grpo`, `dr_grpo`, `rloo`, `reinforce++_baseline`, `gdpo` or `leave_one_out`, or a mapping as
                `creditd.wire.groups.GroupAdvantageChoice`, such as `{"type": "pass_at_k", "k": 4, "threshold": 0.5}` or
                `{"type": "max_at_k", "k": 4}`.
            expect: What the caller is sure of: `{"group_size": 8}`.
            on_item_error: Raise when some rows have no answer, or return the others with `errors` saying why.
            deadline_s: Seconds allowed for everything, waits and retries included. None: the client's.
            request_id: Identity of the request in logs, at most 64 of `A–Z a–z 0–9 . _ : -`. None: a new one.

        Returns:
            Advantages, row by row as the rewards came.

        Raises:
            InvalidRequestError: If the request is wrong, or none of its rows could be answered.
            PartialResultError: If some rows have no answer; `result` holds the others.
            TransportError: If no answer came.
            DeadlineExceededError: If none came in time.
            StatusError: If the service refused or failed; its subclasses say how.
            ResponseError: If the answer is not in the schema of this client.
        """
        check_choice("on_item_error", on_item_error, ("raise", "return"))
        rows, splits, named = group_rewards(rewards)
        content = encoded(
            {
                "rewards": rows,
                "weights": weights,
                "n_tokens": None if n_tokens is None else token_counts(n_tokens),
                "convention": convention,
                "advantage": choice(advantage),
                "expect": expect,
            },
            self.media_type,
        )
        body = Body(content=content, row_splits=splits, named=named, media_type=self.media_type)
        return settled((yield from self._group(body, deadline_s, request_id)), None, on_item_error)

    def repeat(
        self, exchange: Exchange, *, deadline_s: float | None = None, request_id: str | None = None
    ) -> Steps[ShapleyResult | GroupResult | ScarResult | OarResult | ComposeResult]:
        """The answer to a recorded request, asked again with the same body.

        Args:
            exchange: As `creditd.client.exchanges.parsed` reads it from a file of `Client(record=…)`.
            deadline_s: Seconds allowed for everything, waits and retries included. None: the client's.
            request_id: Identity of the new request. None: a new one.

        Returns:
            The result as it is now, rows without an answer included, with `errors` saying why.

        Raises:
            ValueError: If the recorded request is not one that this client sends.
            InvalidRequestError: If the request is wrong, or none of its rows could be answered.
            TransportError: If no answer came.
            DeadlineExceededError: If none came in time.
            StatusError: If the service refused or failed; its subclasses say how.
            ResponseError: If the answer is not in the schema of this client.
        """
        body = body_of(exchange)
        if exchange.operation == SHAPLEY_PATH:
            return (yield from self._shapley(body, deadline_s, request_id))
        if exchange.operation == SCAR_PATH:
            return (yield from self.scar_answered(body, deadline_s, request_id))
        if exchange.operation == COMPOSE_PATH:
            return (yield from self.compose_answered(body, deadline_s, request_id))
        if exchange.operation == OAR_PATH:
            return (yield from self.oar_answered(body, deadline_s, request_id))
        return (yield from self._group(body, deadline_s, request_id))

    def _shapley(self, body: Body, deadline_s: float | None, request_id: str | None) -> Steps[ShapleyResult]:
        return self.answered(SHAPLEY_PATH, body, deadline_s, request_id, local.shapley_result, answers.shapley_result)

    def _group(self, body: Body, deadline_s: float | None, request_id: str | None) -> Steps[GroupResult]:
        return self.answered(GROUP_PATH, body, deadline_s, request_id, local.group_result, answers.group_result)

    def _evaluated(
        self,
        evaluator: Evaluator,
        games: Games,
        options: Mapping[str, Any],
        ids: tuple[Name | None, ...] | None,
        deadline_s: float | None,
        request_id: str | None,
    ) -> Steps[ShapleyResult]:
        """Credits of games whose utilities are evaluated here, coalition by coalition."""
        request_id = checked_request_id(request_id)
        while True:
            body = evaluation.body_of(games, options, ids, self.media_type)
            if self.is_local:
                answer = local.solve_answer(body, request_id)
            else:
                ending = yield from self.exchange(SOLVE_PATH, body, deadline_s, request_id)
                answer = answers.solve_answer(ending.success(), body)
            wanted = evaluation.wanted_in(answer)
            if not wanted:
                return answers.solve_result(answer, body)
            values = yield evaluation.evaluation_of(games, evaluator, wanted, answer)
            games.learn(wanted, values if isinstance(values, list) else [])
