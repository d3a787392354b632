import json

import oar_service
from demo.oar_fabricated import PLAN


def line(route, status=200, n_bytes=100, request="r"):
    """A line of the service's log."""
    return json.dumps({"request_id": request, "route": route, "status": status, "bytes_in": n_bytes})


def test_lines_of_a_log_are_told_apart(tmp_path):
    """By route, by status, by how much was sent; what is half written, or no JSON, is nothing."""
    log = tmp_path / "service.log"
    route = oar_service.WEIGHTS_ROUTE
    lines = [
        f"a warning about {route}", line(route), line(route, n_bytes=1 << 20), line(route, status=409),
        line(oar_service.OAR_ROUTE), line(route, n_bytes=1 << 20)[:-9],
    ]  # fmt: skip
    log.write_text("\n".join(lines), encoding="utf-8")
    assert len(oar_service.logged(log, route)) == 2
    assert len(oar_service.logged(log, route, least_bytes=oar_service.SHARD_BYTES)) == 1
    assert len(oar_service.logged(log, route, 409)) == 1
    assert len(oar_service.logged(log, oar_service.OAR_ROUTE)) == 1


def test_requests_are_found_in_the_log_of_either_service(tmp_path):
    """The one that was killed, and the one in its place; a request that nobody answered is not counted."""
    fragile = oar_service.FragileService(tmp_path, tmp_path / "service.toml")
    for place, request in enumerate("ab"):
        log = tmp_path / f"{place}.log"
        log.write_text(line(oar_service.OAR_ROUTE, request=request), encoding="utf-8")
        fragile.logs.append(log)
    assert fragile.answered(["a", "b", "c"]) == 2


def test_a_service_has_the_policy_and_nothing_else(tmp_path):
    """Its settings name one model, of the kind that takes weights."""
    text = oar_service.write_config(tmp_path).read_text(encoding="utf-8")
    assert text.count("[[models]]") == 1
    assert 'kind = "policy"' in text


def test_the_service_is_killed_half_way():
    """In a step that is neither the first nor the last; the run has a name of its own."""
    assert PLAN.killed_in_step == 6
    assert PLAN.name.endswith(" outage")
