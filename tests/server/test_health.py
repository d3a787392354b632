import anyio
import httpx
import pytest

from creditd.scoring.deadline import Deadline
from creditd.server.app import create_app
from creditd.server.resources import Resources
from creditd.server.settings import Settings
from creditd.wire.info import Info
from server.running import COMPOSE, GROUP, OAR, SCAR, SCAR_SOLVE, SHAPLEY, get, nested, on_service
from server.test_errors import problem_of


def test_a_started_service_is_alive_and_ready():
    """After the start both probes say so."""
    assert get("/livez").text == "alive\n"
    assert get("/readyz").text == "ready\n"


def test_readiness_waits_for_the_first_computation():
    """Before the warm-up the service is alive and not ready."""

    async def ask(service):
        service.resources.warm = False
        return await service.client.get("/readyz"), await service.client.get("/livez")

    ready, alive = on_service(ask)
    assert (ready.status_code, ready.text) == (503, "warming\n")
    assert alive.status_code == 200


def test_the_lifespan_warms_and_closes():
    """Resources are warm while the lifespan is open, and have no threads after it."""
    resources = Resources(Settings())
    assert not resources.warm

    async def ask(service):
        return service.resources.warm

    assert on_service(ask, resources)
    with pytest.raises(RuntimeError, match="not open"):
        on_closed(resources)


def on_closed(resources):
    """Ask resources whose lifespan is over to compute."""
    anyio.run(resources.compute, dict, Deadline.after(1.0), anyio.sleep_forever)


def test_two_services_do_not_share_their_state():
    """Nothing lives in a module: one draining application leaves another ready."""

    async def ask(service):
        other = create_app(Settings())
        other.state.resources.draining = True
        return (await service.client.get("/readyz")).status_code

    assert on_service(ask) == 200


def test_a_draining_service_is_alive_and_not_ready():
    """While draining the service is alive, not ready, and still shows its counters."""

    async def ask(service):
        service.resources.draining = True
        return [await service.client.get(path) for path in ("/livez", "/readyz", "/metrics")]

    alive, ready, metrics = on_service(ask)
    assert (alive.status_code, metrics.status_code) == (200, 200)
    assert (ready.status_code, ready.text) == (503, "draining\n")


@pytest.mark.parametrize("path", [SHAPLEY, GROUP, SCAR, SCAR_SOLVE, OAR, COMPOSE, "/v1/info", "/v1/nope"])
def test_a_draining_service_refuses_new_work(path):
    """Everything under /v1 is 503 `draining` with Retry-After."""

    async def ask(service):
        service.resources.draining = True
        return await service.post(nested(), path)

    response = on_service(ask)
    problem_of(response, "draining")
    assert int(response.headers["retry-after"]) >= 1


def test_info_says_what_the_settings_allow():
    """`/v1/info` fits its model and carries the limits of the settings."""
    response = get("/v1/info", max_candidates=17, max_table_candidates=3, max_body_bytes=4096, max_token_advantages=99)
    info = Info.model_validate_json(response.content)
    assert (info.limits.candidates, info.limits.table_candidates) == (17, 3)
    assert (info.limits.body_bytes, info.limits.token_advantages) == (4096, 99)
    assert (info.limits.arrays, info.limits.objects) == (512, 256)
    assert info.limits.sets == 65_536
    assert info.limits.tokens_per_set == 131_072
    assert info.limits.requests_in_flight == 256
    assert info.models == []
    assert info.service.methods >= 1


def test_everything_in_info_can_be_asked():
    """Each utility, rule and normalisation that `/v1/info` names is answered."""
    info = get("/v1/info").json()
    more = {
        "max_at_k": {"k": 2}, "mixture": {"weights": [1.0, 0.5]}, "pass_at_k": {"k": 1},
        "blend": {"from": "shapley", "to": "leave_one_out", "position": 0.5},
    }  # fmt: skip
    sets = [{"candidates": [{"reward": 1.0, "union": "a"}, {"reward": 0.5, "union": "b"}]}]
    catalogue = get("/v1/utilities").json()["utilities"]
    assert [entry["name"] for entry in catalogue] != []
    assert {entry["name"] for entry in catalogue} == set(info["utilities"])

    async def ask(service):
        bodies = [entry["example"] for entry in catalogue]
        bodies += [{"sets": sets, "credit": {"type": name, **more.get(name, {})}} for name in info["credits"]]
        bodies += [{"sets": sets, "advantage": {"type": name}} for name in info["advantages"]]
        groups = [
            {"rewards": [[1.0, 0.0]], "advantage": {"type": name, **more.get(name, {})}}
            for name in info["group_advantages"]
        ]
        responses = [await service.post(body) for body in bodies]
        responses += [await service.post(body, GROUP) for body in groups]
        return [response.status_code for response in responses]

    assert set(on_service(ask)) == {httpx.codes.OK}
