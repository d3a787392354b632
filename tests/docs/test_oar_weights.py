"""What OAR.md says of weights that are pushed."""

import re
from pathlib import Path

import anyio
import pytest

from creditd.server.settings import Settings
from creditd.wire.weights import PATH_EXAMPLE, SHARD_MEDIA_TYPE, WeightsResponse, WeightsShard
from server.running import on_service
from server.weight_calls import WEIGHTS, name, push, query_of, safetensors_of, send, shards_of, taking

PAGE = (Path(__file__).parents[2] / "OAR.md").read_text(encoding="utf-8")
SECTION = PAGE.split("\n## Live weights\n")[1].split("\n## ")[0]
FOREIGN = safetensors_of({"z": b"1"})


def rows():
    """The rows of the table of answers."""
    table = SECTION.split("| a push | is answered with |\n|---|---|\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


async def by_a_key(service):
    """A user's push."""
    head = {"Content-Type": SHARD_MEDIA_TYPE, "Authorization": "Bearer user"}
    return await service.client.post(WEIGHTS, params=query_of(FOREIGN, 0), content=FOREIGN, headers=head)


async def to_a_reward_model(service):
    """A push to another model."""
    return await service.client.post("/v1/models/rm/weights", json={"type": "announce", "weight_version": "v"})


async def of_another_checksum(service):
    """A damaged shard, and one with other bytes than before."""
    await send(service, shards_of()[0])
    first, second = await send(service, FOREIGN, 1, body=FOREIGN + b"x"), await send(service, shards_of(b"y")[0])
    assert (first.status_code, first.json()["code"]) == (second.status_code, second.json()["code"])
    return first


async def too_large_together(service):
    """Three shards of which two are allowed."""
    found = [await send(service, shard, number) for number, shard in enumerate(shards_of(size=900))]
    return found[-1]


async def other_weights(service):
    """A name twice, while its weights are current and afterwards."""
    await push(service, "v1")
    return await send(service, shards_of(b"y")[0], version="v1")


async def stopping(service):
    """A body of which nothing comes any more."""

    async def body():
        yield b"x"
        await anyio.sleep(60)

    return await send(service, b"x", body=body())


async def late(service):
    """A push to a service that is ending."""
    service.resources.draining = True
    return await send(service, FOREIGN)


KEYS = {"api_keys": ("user",), "admin_keys": ("admin",)}
ANSWERS = {
    "by a key that is none of `admin_keys`": (by_a_key, KEYS),
    "to a model that is no policy": (to_a_reward_model, {}),
    "of a shard with another checksum than it says, or with other bytes than the same shard before": (
        of_another_checksum,
        {},
    ),
    "of a shard that is larger than `max_shard_bytes`": (
        lambda service: send(service, shards_of(size=2000)[0]),
        {"max_shard_bytes": 1024},
    ),
    "of shards that together are larger than `max_weight_bytes`": (too_large_together, {"max_weight_bytes": 2000}),
    "of names, shapes or numbers that do not fit the policy": (lambda service: send(service, FOREIGN, shards=1), {}),
    "of a path outside `weights_root`": (
        lambda service: name(service, type="path", path="..", weight_version="v"),
        {"weights_root": Path(__file__).parent},
    ),
    "of other weights under a name that was used": (other_weights, {}),
    "of a body of which nothing comes for `body_timeout_s`": (stopping, {"body_timeout_s": 0.05}),
    "to a service that is shutting down": (late, {}),
}


def test_each_row_is_a_case():
    """No row is without one, and none without a row."""
    assert [row[0] for row in rows()] == list(ANSWERS)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_push_is_answered_as_its_row_says(row, tmp_path):
    """With the status and the code."""
    ask, settings = ANSWERS[row[0]]
    response = on_service(ask, taking(weights_spool=tmp_path, **settings))
    assert f"{response.status_code} `{response.json()['code']}`" == row[1]


def test_what_the_section_names_exists():
    """Settings, fields and media types are those of the service."""
    names = set(re.findall(r"`([a-z][a-z_]+)`", SECTION))
    settings = {"weights_root", "admin_keys", "weights_spool", "weights_upload_ttl_s", "max_shard_bytes"}
    fields = {"cast_from", "missing_shards", "seconds", "weight_version"}
    assert settings | {"max_weight_bytes", "body_timeout_s"} <= names & set(Settings.model_fields)
    assert fields <= names & set(WeightsResponse.model_fields)
    assert {"weight_version", "shard", "shards", "checksum"} <= names & set(WeightsShard.model_fields)
    assert SHARD_MEDIA_TYPE in SECTION
    assert str(PATH_EXAMPLE).replace("'", '"') in SECTION
