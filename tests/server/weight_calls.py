"""A policy that takes weights of three tensors, shards of them, and the requests that bring them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable
from typing import Any

import httpx

from creditd.engines.errors import EngineError, EngineStoppedError, WeightsRefusedError
from creditd.engines.fake_policy import FakePolicy
from creditd.engines.model_spec import ModelSpec
from creditd.engines.registry import Registry
from creditd.server.resources import Resources
from creditd.server.settings import Settings
from creditd.wire.weights import SHARD_MEDIA_TYPE
from server.model_services import fake
from server.oar_calls import measure

POLICY = "org/policy"
WEIGHTS = f"/v1/models/{POLICY}/weights"
ROUTE = "/v1/models/{id}/weights"
NAMES = ("a", "b", "c")
PATIENCE_S = 30.0


class TakingPolicy(FakePolicy):
    """A fake policy whose weights are three tensors; a swap waits for the gate, which is open at first."""

    def __init__(self, name=POLICY, **options: Any) -> None:
        super().__init__(measure, ModelSpec(name, "nowhere", kind="policy"), **options)
        self.gate = threading.Event()
        self.gate.set()
        self.taken: list[tuple[str, bool, bool]] = []
        self.broken = False

    def replace_weights(self, staged):
        """Take weights whose names are right, on a thread, once the gate is open."""
        if self.broken:
            raise EngineStoppedError("the engine is stopped")
        threading.Thread(target=self._take, args=(staged,), daemon=True).start()
        return staged.outcome

    def _take(self, staged):
        try:
            self.gate.wait(PATIENCE_S)
            with staged.opened():
                if set(staged.tensors) != set(NAMES):
                    raise WeightsRefusedError(f"got {len(staged.tensors)} tensors; expected {len(NAMES)}")
            self.taken.append((staged.version, staged.adapter is not None, staged.merged))
            super().replace_weights(staged)
        except EngineError as error:
            staged.release()
            staged.outcome.set_exception(error)


def taking(policy: TakingPolicy | None = None, **settings: Any) -> Resources:
    """Resources of a service with such a policy and a reward model."""
    found = policy or TakingPolicy()
    return Resources(Settings(**settings), engines=Registry({"rm": fake()}, policies={found.spec.id: found}))


def safetensors_of(tensors: dict[str, bytes], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file of rows of bytes: the length of a header, the header in JSON, the numbers."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    place = 0
    for name, content in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": [place, place + len(content)]}
        place += len(content)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(tensors.values())


def shards_of(fill: bytes = b"x", size: int = 16) -> list[bytes]:
    """Three shards with a tensor each, filled with a byte."""
    return [safetensors_of({name: fill * size}) for name in NAMES]


def query_of(content: bytes, number: int, *, version: str = "v1", shards: int = 3, **more: Any) -> dict[str, Any]:
    """The query of a shard."""
    checksum = hashlib.blake2b(content, digest_size=16).hexdigest()
    return {"weight_version": version, "shard": number, "shards": shards, "checksum": checksum, **more}


async def send(
    service: Any, content: bytes, number: int = 0, *, body: Any = None, headers: Any = None, **query: Any
) -> httpx.Response:
    """Send a shard, or another body in its place."""
    return await service.client.post(
        WEIGHTS,
        params=query_of(content, number, **query),
        content=content if body is None else body,
        headers={"Content-Type": SHARD_MEDIA_TYPE, **(headers or {})},
        timeout=PATIENCE_S,
    )


async def push(service: Any, version: str = "v1", fill: bytes = b"x", order: Iterable[int] = (0, 1, 2)) -> list[Any]:
    """Send all shards; the documents that answer."""
    shards = shards_of(fill)
    return [(await send(service, shards[number], number, version=version)).json() for number in order]


async def name(service: Any, **document: Any) -> httpx.Response:
    """Send a document about weights."""
    return await service.client.post(WEIGHTS, json=document, timeout=PATIENCE_S)
