"""Advantages reshaped by the sensitivity of the answer, as an operation of a client; no IO."""

from __future__ import annotations

from typing import Any, Literal

from creditd.client import oar_answers, oar_local
from creditd.client.arrays import Column
from creditd.client.bodies import Body, Choice, Options, choice, encoded
from creditd.client.conversations import Conversations, OnItemError, check_choice, settled
from creditd.client.exchanges import OAR_PATH
from creditd.client.oar_bodies import completions_of, sensitivity_of
from creditd.client.oar_results import OarResult
from creditd.client.results import Ragged
from creditd.client.steps import Steps


class OarOperations(Conversations):
    """What a client can be asked about the reasoning of completions, as steps."""

    def oar(
        self,
        prompt_ids: Column | None = None,
        completion_ids: Column | None = None,
        *,
        advantages: Column | None = None,
        rewards: Column | None = None,
        model: str | None = None,
        weight_version: str | None = None,
        if_not_ready: Literal["wait", "fail"] = "wait",
        completion_masks: Column | None = None,
        reasoning: Column | None = None,
        answers: Column | None = None,
        completions: Column | None = None,
        token_offsets: Column | None = None,
        sensitivities: Column | Ragged | None = None,
        groups: Column | None = None,
        ids: Column | None = None,
        sensitivity: Choice | None = None,
        probe: Choice = "answer_mean",
        reshape: Options | None = None,
        parser: Choice = "given",
        advantage: Choice = "grpo",
        expect: Options | None = None,
        incomplete_group: Literal["flag", "error"] = "flag",
        deterministic: bool = False,
        on_item_error: OnItemError = "raise",
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Steps[OarResult]:
        """An advantage for each token: that of its completion times how much the answer depends on the token.

        Tokens of the reasoning are weighed against each other, all others weigh 1, and the weights of a completion keep
        the sum that they had (OAR, arXiv 2601.07408; OAR.md says what differs).

        Args:
            prompt_ids: Per completion the tokens of its prompt, as the policy read them.
            completion_ids: Per completion its T tokens, as the policy wrote them. Needed with a `model`.
            advantages: One number per completion, which its tokens share out.
            rewards: Instead of advantages one number per completion, from which they are computed within its group.
            model: Id of the policy of the service (`GET /v1/models`) that is asked how much its answer depends on each
                token. None where `sensitivities` are given.
            weight_version: The version of the policy's weights that is to answer. None: the one that is there, which
                the result names.
            if_not_ready: While the policy has another version, `wait` for this one until the deadline, or `fail`.
            completion_masks: Per completion T truth values, False for a token that the policy did not write: it gets
                exactly 0.
            reasoning: Per completion the half-open token range that is reweighted, or None for all tokens before the
                answer.
            answers: Per completion the half-open token range of its answer.
            completions: Texts, for a `parser` that reads them; None: the policy's tokenizer writes them.
            token_offsets: The characters of these texts that each token writes, beside `completions`.
            sensitivities: Per completion one number per token, None or NaN where there is none; only the positive part
                counts. The sensitivity is then `given`.
            groups: Names of the groups that completions are compared in. None: those of equal prompts.
            ids: Names of the completions. They come back with the result and are not sent.
            sensitivity: `gradient` (OAR-G), `perturbation` (OAR-P), `given`, or a mapping with `type` and `noise_std`,
                `noise_samples`, `seed` of the first, `token_id` of the second. None: `given` beside `sensitivities`,
                else `gradient`.
            probe: What of the answer is watched: `answer_mean`, `last` or `answer_joint`.
            reshape: `quantile` (0.25), `beta` (1), `floor` (0.1) and `preserve_mass` (True).
            parser: Who finds reasoning and answer: `given` (the caller did), `tags`, `hashes`, `boxed`, `last_line`, or
                a mapping such as `{"type": "tags", "reasoning_tag": "think", "answer_tag": "answer"}`.
            advantage: How rewards become advantages, as of `group`.
            expect: What the caller is sure of: `{"group_size": 8}`. Anything else is an error.
            incomplete_group: What happens to the other completions of a group that lost one to an error.
            deterministic: Whether the policy reads each completion by itself, so that others change no bit of it.
            on_item_error: Raise when some completions have no answer, or return the others with `errors` saying why.
            deadline_s: Seconds allowed for everything, waits and retries included. None: the client's.
            request_id: Identity of the request in logs, at most 64 of `A–Z a–z 0–9 . _ : -`. None: a new one.

        Returns:
            Token advantages and more, row by row as the completions came.

        Raises:
            InvalidRequestError: If the request is wrong, or no completion could be answered.
            NotFoundError: If the service has no such model; local mode has none at all.
            WeightVersionUnknownError: If the policy never heard of the version: push the weights, and ask again.
            WeightVersionMismatchError: If it has another version and `if_not_ready` is `fail`, or its time is over.
            PartialResultError: If some completions have no answer; `result` holds the others.
            TransportError: If no answer came.
            DeadlineExceededError: If none came in time.
            StatusError: If the service refused or failed; its subclasses say how.
            ResponseError: If the answer is not in the schema of this client.
        """
        check_choice("on_item_error", on_item_error, ("raise", "return"))
        found = completions_of(
            {
                "prompt_ids": prompt_ids,
                "completion_ids": completion_ids,
                "completion_masks": completion_masks,
                "groups": groups,
                "reasoning": reasoning,
                "answers": answers,
                "advantages": advantages,
                "rewards": rewards,
                "sensitivities": sensitivities,
                "completions": completions,
                "token_offsets": token_offsets,
            },
            ids,
        )
        body: dict[str, Any] = {
            "model": model,
            "weight_version": weight_version,
            "if_not_ready": if_not_ready,
            "items": found.items,
            "sensitivity": sensitivity_of(sensitivity, sensitivities),
            "probe": choice(probe),
            "reshape": reshape,
            "parser": choice(parser),
            "advantage": choice(advantage),
            "expect": expect,
            "incomplete_group": incomplete_group,
            "deterministic": deterministic or None,
        }
        content = encoded(body, self.media_type)
        asked = Body(content=content, row_splits=found.row_splits, ids=found.ids, media_type=self.media_type)
        result = yield from self.oar_answered(asked, deadline_s, request_id)
        return settled(result, result.ids, on_item_error)

    def oar_answered(self, body: Body, deadline_s: float | None, request_id: str | None) -> Steps[OarResult]:
        """The answer to a request for reshaped advantages; arguments and errors as of `answered`."""
        return self.answered(OAR_PATH, body, deadline_s, request_id, oar_local.oar_result, oar_answers.oar_result)
