"""Token credit as an operation of a client; no IO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from creditd.client import scar_answers, scar_evaluation, scar_local
from creditd.client.arrays import Column, refusal
from creditd.client.attempts import checked_request_id
from creditd.client.bodies import Body, Choice, Options, choice, encoded
from creditd.client.conversations import Conversations, OnItemError, check_choice, refuse_unused, settled
from creditd.client.evaluators import Evaluator
from creditd.client.exchanges import SCAR_PATH
from creditd.client.scar_bodies import Completions, completions_of, segmentation_of
from creditd.client.scar_results import ScarResult
from creditd.client.steps import Steps


class ScarOperations(Conversations):
    """What a client can be asked about the tokens of completions, as steps."""

    def scar(
        self,
        prompts: Column,
        completions: Column,
        *,
        model: str | None = None,
        utility: Callable[..., Any] | Evaluator | None = None,
        token_offsets: Column | None = None,
        completion_masks: Column | None = None,
        groups: Column | None = None,
        ids: Column | None = None,
        units: Column | None = None,
        trees: Column | None = None,
        kl: Column | None = None,
        other_rewards: Column | None = None,
        segmentation: Choice | None = None,
        absent: Choice = "delete",
        credit: Choice = "auto",
        estimator: Choice | None = None,
        alpha: float = 1.0,
        advantage: Choice = "none",
        expect: Options | None = None,
        incomplete_group: Literal["flag", "error"] = "flag",
        deterministic: bool = False,
        on_item_error: OnItemError = "raise",
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Steps[ScarResult]:
        """A reward for each token of completions, from what their units are worth to a reward model.

        A unit is a run of tokens that the policy chose. Σ token rewards = Σ kl + other_reward + v(P) − α·v(∅), whatever
        happened to the completion; `result.ledger` has the parts (SCAR, arXiv 2505.20417; SCAR.md says what differs).

        Args:
            prompts: What each completion answers: a text that is read as it is, or a list of messages with `role` and
                `content`, which go through the model's chat template.
            completions: B texts that the policy wrote, those of tools within them included.
            model: Id of the reward model of the service (`GET /v1/models`) that says what texts are worth.
            utility: Instead of a model a function `f(prompt, text) -> float`, or an `Evaluator` of one, which batched
                is called as `f(prompts, texts) -> floats`. It runs in this process, of which the deadline counts
                nothing, once for each text. None and NaN refuse a text: its completion then gets its whole return on
                the last token, flagged `fallback_return`.
            token_offsets: Per completion the characters [start, stop) that each of its T tokens writes, a list of pairs
                or an array of shape (T, 2); `creditd.adapters.completions.token_offsets` finds them. None: every
                segment of the text counts as one token.
            completion_masks: Per completion T truth values, False for a token that the policy did not write: it is
                never absent, is in no unit, and gets exactly 0.
            groups: Names of the groups that completions are compared in, one per completion. None: those of equal
                prompts are compared.
            ids: Names of the completions. They come back with the result and are not sent.
            units: Per completion its units as half-open token ranges; the segmentation is then `given`.
            trees: Per completion n − 1 merges of its n units, for the credit `owen`: numbers below n are units, n + k
                is the k-th merge, and the last merge holds all. None: the balanced tree.
            kl: Per completion one KL term per token, reward units, added to its reward; a penalty is negative.
            other_rewards: Per completion what other rewards give it: on the last token, in full, never shared out.
            segmentation: Where units come from: `span`, `token`, `sentence`, `lines`, or a mapping such as
                `{"type": "regex", "pattern": "; "}`, with `max_units` (24; None: no limit). None: `given` beside
                `units`, else `span`.
            absent: What stands in the place of absent units: `delete`, `blank`, or `{"type": "mask_token", "text": …}`.
            credit: What units get: `auto`, `shapley`, `owen`, `prefix`, `leave_one_out`, `uniform`, or with a model
                `attention`.
            estimator: How many texts may be evaluated per completion, and how, as `creditd.wire.scar_choices`: a name
                or a mapping with `type`, `budget` (512), `seed`, `target_standard_error`.
            alpha: α in [0, 1], the part of the reward that units get where they stand; the rest is on the last token.
            advantage: `none`, or `pooled` for one advantage per token within the group, in the form of GRPO.
            expect: What the caller is sure of: `{"group_size": 8}`. Anything else is an error.
            incomplete_group: What happens to the other completions of a group that lost one to an error.
            deterministic: Whether the model reads each completion by itself, so that others of its batch change no bit.
            on_item_error: Raise when some completions have no answer, or return the others with `errors` saying why.
            deadline_s: Seconds allowed for everything, waits and retries included. None: the client's.
            request_id: Identity of the request in logs, at most 64 of `A–Z a–z 0–9 . _ : -`. None: a new one.

        Returns:
            Token rewards and more, row by row as the completions came.

        Raises:
            InvalidRequestError: If the request is wrong, or no completion could be answered.
            NotFoundError: If the service has no such model; local mode has none at all.
            PartialResultError: If some completions have no answer; `result` holds the others.
            TransportError: If no answer came.
            DeadlineExceededError: If none came in time.
            StatusError: If the service refused or failed; its subclasses say how.
            ResponseError: If the answer is not in the schema of this client.
        """
        check_choice("on_item_error", on_item_error, ("raise", "return"))
        if (model is None) == (utility is None):
            given = "neither" if model is None else "both"
            raise refusal(
                "/model", f"got {given} of model and utility; expected one of them to say what texts are worth"
            )
        found = completions_of(
            prompts,
            completions,
            {
                "prompts": prompts,
                "ids": ids,
                "token_offsets": token_offsets,
                "completion_masks": completion_masks,
                "groups": groups,
                "units": units,
                "trees": trees,
                "kl": kl,
                "other_rewards": other_rewards,
            },
        )
        options: dict[str, Any] = {
            "segmentation": choice(segmentation_of(segmentation, units)),
            "absent": choice(absent),
            "credit": choice(credit),
            "estimator": None if estimator is None else choice(estimator),
            "alpha": alpha,
            "advantage": choice(advantage),
            "expect": expect,
            "incomplete_group": incomplete_group,
        }
        if utility is not None:
            refuse_unused({"deterministic": deterministic or None})
            evaluator = utility if isinstance(utility, Evaluator) else Evaluator(utility)
            result = yield from self._spans_evaluated(evaluator, found, options, deadline_s, request_id)
            return settled(result, result.ids, on_item_error)
        options |= {"model": model, "deterministic": deterministic or None}
        content = encoded({"items": found.items, **options}, self.media_type)
        body = Body(content=content, row_splits=found.row_splits, ids=found.ids, media_type=self.media_type)
        result = yield from self.scar_answered(body, deadline_s, request_id)
        return settled(result, result.ids, on_item_error)

    def scar_answered(self, body: Body, deadline_s: float | None, request_id: str | None) -> Steps[ScarResult]:
        """The answer to a request whose utilities a model gives; arguments and errors as of `answered`."""
        return self.answered(SCAR_PATH, body, deadline_s, request_id, scar_local.scar_result, scar_answers.scar_result)

    def _spans_evaluated(
        self,
        evaluator: Evaluator,
        completions: Completions,
        options: Mapping[str, Any],
        deadline_s: float | None,
        request_id: str | None,
    ) -> Steps[ScarResult]:
        """Token credit of completions whose texts are evaluated here, coalition by coalition."""
        request_id = checked_request_id(request_id)
        games = scar_evaluation.TextGames(completions, scar_evaluation.filler_of(options["absent"]))
        while True:
            body = scar_evaluation.body_of(games, options, self.media_type)
            if self.is_local:
                answer = scar_local.solve_answer(body, request_id)
            else:
                ending = yield from self.exchange(scar_evaluation.SOLVE_PATH, body, deadline_s, request_id)
                answer = scar_answers.solve_answer(ending.success(), body)
            questions = games.wanted(answer)
            if not questions:
                return scar_answers.solved_result(answer, body)
            keys = scar_evaluation.unknown_in(games, questions)
            values = (yield scar_evaluation.evaluation_of(games, evaluator, questions, keys, answer)) if keys else []
            games.learn(questions, keys, values if isinstance(values, list) else [])
