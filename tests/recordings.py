"""Exchanges as a recording holds them."""

from datetime import datetime, timezone

from creditd.client.steps import Exchange

NOW = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)
PLAIN = Exchange(
    time=NOW,
    url="http://credit.test",
    operation="/v1/credit/group",
    request_id="r",
    status=200,
    attempts=1,
    elapsed_s=0.5,
    client_version="0",
    service_version="0",
    ids=None,
    request='{"rewards":[[1.0]]}',
    response="{}",
    error=None,
)


def changed(**fields) -> Exchange:
    """Make an exchange that differs from the plain one in some fields."""
    return Exchange(**{**PLAIN.__dict__, **fields})
