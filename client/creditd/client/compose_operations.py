"""Credit from candidate sets down to tokens, as an operation of a client; no IO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from creditd.client import compose_answers, compose_local
from creditd.client.bodies import Body, Choice, Options, choice, encoded
from creditd.client.compose_bodies import composition_of
from creditd.client.compose_results import ComposeResult
from creditd.client.conversations import Conversations, OnItemError, check_choice, settled
from creditd.client.exchanges import COMPOSE_PATH
from creditd.client.steps import Steps


class ComposeOperations(Conversations):
    """What a client can be asked about the insides of candidates, as steps."""

    def compose(
        self,
        sets: Sequence[Mapping[str, Any]],
        *,
        inside: Choice | None = None,
        utility: Choice | None = None,
        aggregation: Choice | None = None,
        credit: Choice | None = None,
        advantage: Choice | None = None,
        tokens: Options | None = None,
        malformed: Options | None = None,
        expect: Options | None = None,
        incomplete_group: Literal["flag", "error"] = "flag",
        on_item_error: OnItemError = "raise",
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Steps[ComposeResult]:
        """An advantage for each token of completions that hold candidates, by what is known inside the candidates.

        The mass of a candidate, the sum of its tokens' advantages, is what its own advantage says, whatever its units
        get; `result.ledgers` accounts for it (COMPOSE.md has the formulas).

        Args:
            sets: B mappings in the shape of `creditd.wire.compose.ComposeSet`: what `shapley` takes, `n_tokens` and a
                `span` per candidate included; perhaps a `completion_mask`. Of a candidate's inside: `units` (token
                ranges of the completion) with `unit_values`, their credits; or `units` with `utilities`, what each of
                2^m partial texts is worth, from which their credits are found exactly; or `sensitivities`, one per
                token of its span. Lists, arrays and tensors are alike. `id` comes back and is not sent.
                Where the caller has advantages, each candidate has its `advantage` and the set its `set_advantage`.
            inside: How credit gets inside candidates: `additive`, `bounded`, `sensitivity`, or a mapping such as
                `{"type": "bounded", "share": 0.25}`. None: `additive`, and `bounded` beside given advantages.
            utility: What a set is worth, as of `shapley`, but for those that somebody evaluates. None: `max`.
            aggregation: How several named rewards become one credit, a name or a mapping with `type` and `weights`.
            credit: Which rule shares it out. None: `shapley`.
            advantage: How credits become advantages. None: `pooled`. Of no use beside given advantages.
            tokens: What tokens receive, as `creditd.wire.v1.TokensChoice`.
            malformed: What happens to sets that are not as the prompt asked, as `creditd.wire.v1.MalformedChoice`.
            expect: What the caller is sure of: `{"group_size": 8, "candidates": 4}`. Anything else is an error.
            incomplete_group: What happens to the other sets of a group that lost one to an error.
            on_item_error: Raise when some sets have no answer, or return the others with `errors` saying why.
            deadline_s: Seconds allowed for everything, waits and retries included. None: the client's.
            request_id: Identity of the request in logs, at most 64 of `A–Z a–z 0–9 . _ : -`. None: a new one.

        Returns:
            Token advantages and more, row by row as the sets came.

        Raises:
            InvalidRequestError: If the request is wrong, or no set could be answered.
            PartialResultError: If some sets have no answer; `result` holds the others.
            TransportError: If no answer came.
            DeadlineExceededError: If none came in time.
            StatusError: If the service refused or failed; its subclasses say how.
            ResponseError: If the answer is not in the schema of this client.
        """
        check_choice("on_item_error", on_item_error, ("raise", "return"))
        found = composition_of(sets)
        choices = {"inside": inside, "utility": utility, "aggregation": aggregation, "credit": credit}
        choices["advantage"] = advantage
        body = Body(
            content=encoded(
                {
                    "sets": found.sets,
                    **{name: None if value is None else choice(value) for name, value in choices.items()},
                    "tokens": tokens,
                    "malformed": malformed,
                    "expect": expect,
                    "incomplete_group": incomplete_group,
                },
                self.media_type,
            ),
            row_splits=found.row_splits,
            token_splits=found.token_splits,
            ids=found.ids,
            media_type=self.media_type,
        )
        result = yield from self.compose_answered(body, deadline_s, request_id)
        return settled(result, result.ids, on_item_error)

    def compose_answered(self, body: Body, deadline_s: float | None, request_id: str | None) -> Steps[ComposeResult]:
        """The answer to a request for composed credit; arguments and errors as of `answered`."""
        computed, read = compose_local.compose_result, compose_answers.compose_result
        return self.answered(COMPOSE_PATH, body, deadline_s, request_id, computed, read)
