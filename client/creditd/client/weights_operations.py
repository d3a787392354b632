"""Weights of a policy as operations of a client; no IO, and no torch: a shard is the bytes of a safetensors file."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sized
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np

from creditd.client import local
from creditd.client.attempts import checked_request_id
from creditd.client.bodies import Body, encoded
from creditd.client.documents import known, read
from creditd.client.exceptions import WeightVersionUnknownError
from creditd.client.inquiries import Inquiries
from creditd.client.steps import Steps
from creditd.wire.errors import ERROR_KINDS, ErrorCode
from creditd.wire.weights import SHARD_MEDIA_TYPE, WeightsResponse

CHECKSUM_BYTES = 16


class WeightsOperations(Inquiries):
    """How the weights of a policy are replaced, as steps. The service wants an admin key, if it has keys."""

    def load_weights(
        self,
        model: str,
        path: str,
        *,
        weight_version: str,
        adapter: bool = False,
        merged: bool = False,
        checksum: str | None = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Steps[WeightsResponse]:
        """Have a policy take weights that the service finds by itself, on a disk that both see.

        Args:
            model: Id of the policy (`GET /v1/models`).
            path: A safetensors file, or a directory as `save_pretrained` writes it, below the `weights_root` of the
                service's settings.
            weight_version: What these weights are called from now on: a name that no other bytes have had, such as
                `RUN:STEP`.
            adapter: Whether it is an adapter by PEFT, beside the weights that the policy was loaded with.
            merged: Whether an adapter is added to the weights, or computed beside them. Sensitivities are the same.
            checksum: What `creditd.engines.fingerprints.digest_of` says of the files. None: nothing is compared.
            deadline_s: Seconds allowed for everything, waits and retries included. None: the client's.
            request_id: Identity of the request in logs. None: a new one.

        Returns:
            What became of them; they are what answers are of.

        Raises:
            WeightsRefusedError: If there are no weights, they do not fit the policy, or the checksum is another.
            WeightVersionMismatchError: If the version names other bytes already.
            ForbiddenError: If the key is no admin key.
            NotFoundError: If the service has no such policy; local mode has none at all.
            TransportError: If no answer came.
            StatusError: If the service refused or failed; its subclasses say how.
            ResponseError: If the answer is not in the schema of this client.
        """
        asked = {
            "type": "path",
            "path": path,
            "weight_version": weight_version,
            "adapter": adapter,
            "merged": merged,
            "checksum": checksum,
        }
        return (yield from self._document(model, asked, deadline_s, request_id))

    def announce_weights(
        self, model: str, *, weight_version: str, deadline_s: float | None = None, request_id: str | None = None
    ) -> Steps[WeightsResponse]:
        """Say that weights of a version will come, so that requests which name it wait for them.

        Args:
            model: Id of the policy.
            weight_version: What they will be called.
            deadline_s: Seconds allowed for everything, waits and retries included. None: the client's.
            request_id: Identity of the request in logs. None: a new one.

        Returns:
            The version that answers are of, until those weights come.

        Raises:
            CreditdError: As `load_weights`.
        """
        asked = {"type": "announce", "weight_version": weight_version}
        return (yield from self._document(model, asked, deadline_s, request_id))

    def push_weights(
        self,
        model: str,
        shards: Iterable[bytes],
        *,
        weight_version: str,
        n_shards: int | None = None,
        adapter: bool = False,
        merged: bool = False,
        deadline_s: float | None = None,
        announce_deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Steps[WeightsResponse]:
        """Send weights to a policy, which takes them once the last shard is there.

        They are announced first: requests that name the version wait for them, and a wrong key, or a policy that does
        not exist, costs no shard.

        Args:
            model: Id of the policy.
            shards: Each the bytes of one safetensors file, in which every tensor stands once in all; asked for one by
                one, so that a generator needs the memory of one.
            weight_version: What these weights are called from now on: a name that no other bytes have had, such as
                `RUN:STEP`.
            n_shards: How many shards come. None: the length of `shards`, which has to have one.
            adapter: Whether they are an adapter by PEFT, whose configuration is in the metadata of the first shard
                under `adapter_config`, as JSON.
            merged: Whether an adapter is added to the weights, or computed beside them. Sensitivities are the same.
            deadline_s: Seconds allowed for each shard, waits and retries included. None: the client's.
            announce_deadline_s: The same for the announcement: how long a service that is away is waited for before
                anything is sent. None: `deadline_s`.
            request_id: Identity of the requests in logs, the same for all shards. None: a new one.

        Returns:
            What became of them; they are what answers are of.

        Raises:
            ValueError: If there is no number of shards, or another number comes.
            WeightsRefusedError: If they do not fit the policy.
            WeightVersionUnknownError: If the service lost shards that it had, because it was restarted: push again.
            WeightVersionMismatchError: If the version names other bytes already.
            CreditdError: As `load_weights`.
        """
        n_shards = _number_of(shards, n_shards)
        request_id = checked_request_id(request_id)
        patience_s = deadline_s if announce_deadline_s is None else announce_deadline_s
        answer = yield from self.announce_weights(
            model, weight_version=weight_version, deadline_s=patience_s, request_id=request_id
        )
        number = 0
        for content in shards:
            if number >= n_shards:
                raise ValueError(f"got more shards than {n_shards}; expected as many as n_shards says")
            query = {
                "weight_version": weight_version,
                "shard": number,
                "shards": n_shards,
                "checksum": hashlib.blake2b(content, digest_size=CHECKSUM_BYTES).hexdigest(),
                "adapter": str(adapter).lower(),
                "merged": str(merged).lower(),
            }
            body = Body(content, np.zeros(1, dtype=np.int64), media_type=SHARD_MEDIA_TYPE)
            answer = yield from self._weights(f"{_path(model)}?{urlencode(query)}", body, deadline_s, request_id)
            number += 1
            del content, body  # before the next one is made
        if number < n_shards:
            raise ValueError(f"got {number} shards; expected {n_shards}, as n_shards says")
        if answer.status != "live":
            raise _lost(answer, request_id)
        return answer

    def _document(
        self, model: str, asked: dict[str, Any], deadline_s: float | None, request_id: str | None
    ) -> Steps[WeightsResponse]:
        body = Body(encoded(asked), np.zeros(1, dtype=np.int64))
        return (yield from self._weights(_path(model), body, deadline_s, request_id or uuid.uuid4().hex))

    def _weights(self, path: str, body: Body, deadline_s: float | None, request_id: str) -> Steps[WeightsResponse]:
        request_id = checked_request_id(request_id)
        if self.is_local:
            raise local.unknown_model("/model", request_id)
        ending = yield from self.exchange(path, body, deadline_s, request_id)
        return read(ending.success(), lambda answer: known(WeightsResponse, answer))


def _number_of(shards: Iterable[bytes], n_shards: int | None) -> int:
    """How many shards come, as far as it is known before."""
    length = len(shards) if isinstance(shards, Sized) else None
    if n_shards is None:
        n_shards = length
    if n_shards is None:
        raise ValueError("got shards without a length; expected n_shards, how many come")
    if n_shards < 1 or length not in {None, n_shards}:
        raise ValueError(f"got {n_shards if length is None else length} shards; expected {max(n_shards, 1)}")
    return n_shards


def _path(model: str) -> str:
    """The route of a policy, whose id may have slashes."""
    return f"/v1/models/{quote(model)}/weights"


def _lost(answer: WeightsResponse, request_id: str) -> WeightVersionUnknownError:
    """The failure of a push of which some shards are gone although each was answered."""
    code = ErrorCode.WEIGHT_VERSION_UNKNOWN
    return WeightVersionUnknownError(
        f"the service has lost {len(answer.missing_shards)} shards that it had, as one does that is restarted; "
        f"push all of them again [request {request_id}]",
        status=ERROR_KINDS[code].status,
        code=code.value,
        request_id=request_id,
        attempts=1,
    )
