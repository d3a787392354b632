import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from creditd.credit import CandidateSets, SetCreditOptions, set_credit
from server.processes import PATIENCE_S, slow_service, wait_until
from server.running import SHAPLEY, nested

pytestmark = pytest.mark.slow

ASKERS = 50


def rewards_of(number):
    """Different rewards for each asker."""
    return [[number / 7, 1.0, 0.25], [0.5, number / 50, -1.0]]


def expected(number):
    """Credits and advantages computed here, without any service."""
    rewards = np.array(rewards_of(number))
    sets = CandidateSets(
        rewards=rewards.ravel(), row_splits=np.array([0, 3, 6]), groups=np.zeros(2, dtype=np.int64), n_groups=1
    )
    answer = set_credit(sets, SetCreditOptions())
    return answer.credits.tolist(), answer.advantages.tolist()


def ask(service, number):
    """The response to one asker, on a connection of its own."""
    return httpx.post(f"{service.url}{SHAPLEY}", json=nested(rewards_of(number)), timeout=PATIENCE_S)


def ready(service):
    """The status of /readyz."""
    return httpx.get(f"{service.url}/readyz", timeout=PATIENCE_S).status_code


def test_fifty_requests_in_flight_are_fifty_answers(tmp_path):
    """SIGTERM with fifty requests in flight: fifty correct answers, new ones refused meanwhile, exit status 0."""
    with slow_service(tmp_path, compute_threads=4) as service, ThreadPoolExecutor(ASKERS) as askers:
        asked = [askers.submit(ask, service, number) for number in range(ASKERS)]
        wait_until(lambda: service.in_flight() == ASKERS, "all fifty are admitted")
        service.ask_to_end()
        wait_until(lambda: ready(service) == 503, "the service is not ready any more")
        for _ in range(3):
            refused = ask(service, 0)
            assert (refused.status_code, refused.json()["code"]) == (503, "draining")
            assert refused.headers["retry-after"] == "1"
        assert httpx.get(f"{service.url}/livez", timeout=PATIENCE_S).status_code == 200
        assert service.in_flight() == ASKERS
        assert service.process.poll() is None
        service.let_pass()
        responses = [answer.result(PATIENCE_S) for answer in asked]
        assert [response.status_code for response in responses] == [200] * ASKERS
        for number, response in enumerate(responses):
            sets = response.json()["sets"]
            credits_, advantages = expected(number)
            assert [value for one in sets for value in one["credits"]] == credits_
            assert [value for one in sets for value in one["advantages"]] == advantages
        assert service.status() == 0
        with pytest.raises(httpx.ConnectError):
            ask(service, 0)
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    statuses = [line["status"] for line in lines if line.get("route") == SHAPLEY]
    assert statuses.count(200) == ASKERS


def test_an_idle_service_ends_at_once(tmp_path):
    """SIGTERM while nothing is asked: exit status 0, and everything that was logged is JSON."""
    with slow_service(tmp_path) as service:
        assert ready(service) == 200
        service.ask_to_end()
        assert service.status() == 0
    for line in service.log.read_text().splitlines():
        assert json.loads(line)["level"] in {"info", "warning"}


def test_an_idle_connection_does_not_hold_the_end_up(tmp_path):
    """A connection that is kept alive, as trainers do, does not count as a request in flight."""
    with slow_service(tmp_path) as service, httpx.Client(base_url=service.url) as client:
        assert client.get("/livez").status_code == 200
        service.ask_to_end()
        assert service.status() == 0


def test_an_end_that_cuts_requests_off_says_so(tmp_path):
    """When the drain takes longer than the setting the process ends all the same, with exit status 1."""
    with slow_service(tmp_path, hold_s=10.0, drain_timeout_s=0.2) as service, ThreadPoolExecutor(1) as askers:
        asked = askers.submit(ask, service, 1)
        wait_until(lambda: service.in_flight() == 1, "the request is admitted")
        service.ask_to_end()
        status = service.status()
        with pytest.raises(httpx.HTTPError):
            asked.result(PATIENCE_S).raise_for_status()
        assert status == 1


def test_a_second_signal_ends_with_status_1(tmp_path):
    """A second SIGTERM does not wait for requests in flight: they are cut off, and the exit status says so."""
    with slow_service(tmp_path, hold_s=5.0) as service, ThreadPoolExecutor(1) as askers:
        asked = askers.submit(ask, service, 1)
        wait_until(lambda: service.in_flight() == 1, "the request is admitted")
        service.ask_to_end()
        wait_until(lambda: ready(service) == 503, "the service drains")
        service.ask_to_end()
        status = service.status()
        with pytest.raises(httpx.HTTPError):
            asked.result(PATIENCE_S).raise_for_status()
        assert status == 1


def test_an_answer_that_is_still_being_read_is_not_cut(tmp_path):
    """SIGTERM while a caller reads a large answer slowly: it gets all of it, and the exit status is 0."""
    n_sets, n_tokens = 16, 131_072
    body = {
        "columns": {
            "rewards": [[1.0, 0.3]] * n_sets,
            "spans": {"starts": [0, 7] * n_sets, "stops": [7, 9] * n_sets},
            "n_tokens": [n_tokens] * n_sets,
        },
        "tokens": {},
    }
    with slow_service(tmp_path) as service:
        service.let_pass()
        with httpx.stream("POST", f"{service.url}{SHAPLEY}", json=body, timeout=PATIENCE_S) as response:
            service.ask_to_end()
            wait_until(lambda: service.process.poll() is not None or refuses(service), "the service is draining")
            time.sleep(2.0)
            content = b"".join(response.iter_bytes())
        assert len(content) == int(response.headers["content-length"])
        assert len(json.loads(content)["columns"]["token_advantages"]["values"]) == n_sets * n_tokens
        assert service.status() == 0


def refuses(service):
    """Whether nobody listens any more."""
    try:
        httpx.get(f"{service.url}/livez", timeout=PATIENCE_S)
    except httpx.TransportError:
        return True
    return False
