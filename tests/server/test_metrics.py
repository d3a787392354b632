from prometheus_client.parser import text_string_to_metric_families

from server.running import GROUP, SHAPLEY, nested, on_service

NAMES = {
    "creditd_requests",
    "creditd_request_seconds",
    "creditd_requests_in_flight",
    "creditd_held_bytes",
    "creditd_items",
    "creditd_item_errors",
    "creditd_flags",
    "creditd_draining",
}
OF_MODELS = {
    "creditd_evaluations",
    "creditd_model_tokens",
    "creditd_engine_seconds",
    "creditd_engine_queued_tokens",
    "creditd_engine_silent_seconds",
    "creditd_weight_swaps",
    "creditd_weight_swap_seconds",
}
"""Names that are there with a sample for each model alone."""
OF_THE_CACHE = {
    "creditd_cache_games", "creditd_cache_evaluations_saved", "creditd_cache_corrupt", "creditd_cache_errors",
    "creditd_cache_dropped_writes", "creditd_cache_contradictions", "creditd_cache_breaker",
    "creditd_cache_memory_bytes", "creditd_cache_memory_games", "creditd_cache_queued_bytes",
}  # fmt: skip


def counters_after(*requests, **settings):
    """The samples of `/metrics` after some requests, by name and labels."""

    async def ask(service):
        for request in requests:
            await request(service)
        response = await service.client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        return response.text

    families = list(text_string_to_metric_families(on_service(ask, **settings)))
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }
    return families, samples


def test_metrics_have_their_names():
    """The names are the glossary's, and no others appear."""
    families, samples = counters_after()
    assert {family.name.removesuffix("_created") for family in families} <= NAMES | OF_MODELS | OF_THE_CACHE
    assert samples["creditd_requests_in_flight",] == 0
    assert samples["creditd_draining",] == 0
    families, _ = counters_after(lambda s: s.post(nested([[1.0], [float("nan")]])))
    assert {family.name.removesuffix("_created") for family in families} == NAMES | OF_MODELS | OF_THE_CACHE


def test_counters_move():
    """Requests, items, errors and flags are counted by route, status, code and name."""
    _, samples = counters_after(
        lambda s: s.post(nested([[1.0, 0.0], [float("nan")], [0.5, 0.5]])),
        lambda s: s.post(nested()),
        lambda s: s.post("rubbish"),
        lambda s: s.post({"rewards": [[1.0, 0.0], [1.0]]}, GROUP),
        lambda s: s.client.get("/nope"),
        lambda s: s.client.get("/nope/of/another/name"),
    )

    def requests(route, status):
        return samples["creditd_requests_total", ("route", route), ("status", status)]

    assert requests(SHAPLEY, "200") == 2
    assert requests(SHAPLEY, "422") == 1
    assert requests(GROUP, "200") == 1
    assert requests("unmatched", "404") == 2
    assert samples["creditd_request_seconds_count", ("route", SHAPLEY)] == 3
    assert samples["creditd_items_total", ("route", SHAPLEY), ("status", "ok")] == 6
    assert samples["creditd_items_total", ("route", SHAPLEY), ("status", "error")] == 1
    assert samples["creditd_items_total", ("route", GROUP), ("status", "ok")] == 2
    assert samples["creditd_item_errors_total", ("code", "non_finite_value")] == 1
    assert samples["creditd_flags_total", ("flag", "group_incomplete")] == 2
    assert samples["creditd_flags_total", ("flag", "single_response")] == 1


def test_sets_of_a_refused_request_are_counted():
    """When every set fails the counters say so, too: that is when somebody looks at them."""
    _, samples = counters_after(lambda s: s.post(nested([[float("nan")]] * 3)))
    assert samples.get(("creditd_item_errors_total", ("code", "non_finite_value"))) == 3


def test_refusals_are_counted_under_their_route():
    """A caller without a key, and a full or draining service, show under the route that was asked for."""

    async def drained(service):
        service.resources.draining = True
        await service.post(nested())

    _, samples = counters_after(drained)
    assert samples.get(("creditd_requests_total", ("route", SHAPLEY), ("status", "503"))) == 1


def test_no_label_comes_from_a_caller():
    """Paths, ids and methods of callers make no time series."""

    async def ask(service):
        for number in range(20):
            await service.client.get(f"/{number}")
            await service.client.request(f"M{number}", "/v1/info")

    _, samples = counters_after(ask)
    assert len([name for name in samples if name[0] == "creditd_requests_total"]) <= 3
