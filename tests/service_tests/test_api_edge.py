"""What holds for every request: problem documents, ids, hosts, sizes, keys, health, dashboard."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.api import errors
from service.db import api_keys
from service.db.columns import utc_now
from service.settings import Settings
from tests.service_tests.api_world import World, assert_problem, world


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("api")) as made:
        yield made


def test_unknown_paths_and_methods_are_problems(api: World) -> None:
    assert_problem(api.client.get("/api/v1/nothing"), 404, "not-found")
    assert_problem(api.client.delete("/api/v1/jobs"), 405, "method-not-allowed")
    for path in ("models/mdl_no", "datasets/dst_no", "jobs/job_no", "trials/trl_no"):
        document = assert_problem(api.client.get(f"/api/v1/{path}"), 404, "not-found")
        assert path.partition("/")[2] in document["detail"]
    for path in ("jobs/job_no/trials", "jobs/job_no/front", "jobs/job_no/events"):
        assert_problem(api.client.get(f"/api/v1/{path}"), 404, "not-found")
    for path in ("artifacts/art_no", "artifacts/art_no/content", "devices/moon/npu"):
        assert_problem(api.client.get(f"/api/v1/{path}"), 404, "not-found")


def test_bodies_that_are_no_json_are_problems(api: World) -> None:
    headers = {"content-type": "application/json"}
    answer = api.client.post("/api/v1/jobs", content=b"{no json", headers=headers)
    assert_problem(answer, 422, "validation", "")
    answer = api.client.post("/api/v1/jobs", content=b"x", headers={"content-type": "text/plain"})
    assert_problem(answer, 422, "validation")
    assert_problem(api.client.post("/api/v1/models"), 422, "validation", "/spec")
    answer = api.client.post("/api/v1/models", data={"spec": "{"}, files={"weights": b"x"})
    assert_problem(answer, 422, "validation", "/spec")


def test_queries_out_of_range_are_problems(api: World) -> None:
    assert_problem(api.client.get("/api/v1/jobs?limit=0"), 422, "validation", "#query/limit")
    assert_problem(api.client.get("/api/v1/jobs?cursor=zzz"), 422, "cursor-invalid")
    assert_problem(api.client.get("/api/v1/jobs?state=MAYBE"), 422, "validation", "#query/state")
    assert_problem(api.client.get("/api/v1/jobs?label=a"), 422, "validation", "#query/label")


def test_an_unexpected_failure_is_a_problem_without_a_trace(
    api: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr(api.database, "ping", broken)
    answer = api.client.get("/readyz")
    document = assert_problem(answer, 500, "internal")
    assert "secret" not in answer.text
    assert document["request_id"] in document["detail"]


def test_request_ids_are_echoed_when_plain(api: World) -> None:
    answer = api.client.get("/healthz", headers={"X-Request-ID": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    answer = api.client.get("/healthz", headers={"X-Request-ID": "a b\tc"})
    assert answer.headers["x-request-id"].startswith("req_")


def test_health(api: World) -> None:
    assert api.client.get("/healthz").json()["status"] == "ok"
    assert api.client.get("/readyz").json()["checks"] == {"database": "ok"}


def test_foreign_hosts_and_pages_are_refused(api: World) -> None:
    answer = api.client.get("/api/v1/jobs", headers={"host": "evil.example:8080"})
    assert_problem(answer, 421, "host-refused")
    assert api.client.get("/api/v1/jobs", headers={"host": "[::1]:8080"}).status_code == 200
    for origin in ("https://evil.example", "null"):
        answer = api.client.post("/api/v1/models", headers={"origin": origin})
        assert_problem(answer, 421, "host-refused")
    own = api.client.post("/api/v1/models", headers={"origin": "http://localhost:8080"})
    assert_problem(own, 422, "validation")


def test_oversized_bodies_are_refused_by_length_and_by_count(tmp_path: Path) -> None:
    with world(tmp_path, max_upload_bytes=1000, max_body_bytes=2000) as api:
        big = b"x" * 4000
        answer = api.client.post("/api/v1/models", data={"spec": "{}"}, files={"weights": big})
        document = assert_problem(answer, 413, "body-too-large")
        assert "3,000 bytes" not in document["title"]
        assert "3,000" in document["detail"]
        chunks = (b"y" * 500 for _ in range(20))
        headers = {"content-type": "application/json"}
        answer = api.client.post("/api/v1/jobs", content=chunks, headers=headers)
        document = assert_problem(answer, 413, "body-too-large")
        assert "2,000" in document["detail"]


def test_keys_are_asked_for_where_they_are_required(tmp_path: Path) -> None:
    with world(tmp_path, require_api_key=True) as api:
        with api.database.write() as session:
            _, reader = api_keys.create(session, name="reader", scopes=["read"])
            _, writer = api_keys.create(session, name="writer", scopes=["write"])
            past = utc_now() - datetime.timedelta(seconds=1)
            _, old = api_keys.create(session, name="old", scopes=["read"], expires_at=past)
        answer = api.client.get("/api/v1/jobs")
        assert_problem(answer, 401, "key-required")
        assert answer.headers["www-authenticate"] == "Bearer"
        for wrong in ("", "ppk_a_b", old):
            headers = {"authorization": f"Bearer {wrong}"}
            answer = api.client.get("/api/v1/jobs", headers=headers)
            assert_problem(answer, 401, "key-required")
        reading = {"authorization": f"Bearer {reader}"}
        assert api.client.get("/api/v1/jobs", headers=reading).status_code == 200
        answer = api.client.post("/api/v1/jobs", json={}, headers=reading)
        assert_problem(answer, 403, "key-forbidden")
        writing = {"authorization": f"Bearer {writer}"}
        assert_problem(api.client.post("/api/v1/jobs", json={}, headers=writing), 422, "validation")
        assert api.client.get("/healthz").status_code == 200


def test_every_api_route_asks_for_the_key(tmp_path: Path) -> None:
    with world(tmp_path, require_api_key=True) as api:
        paths = api.client.get("/openapi.json").json()["paths"]
        asked = 0
        for path, operations in paths.items():
            if not path.startswith("/api/"):
                continue
            for method in operations:
                answer = api.client.request(method, path.replace("{", "").replace("}", ""))
                assert answer.status_code == 401, (method, path)
                asked += 1
        assert asked > 20


def test_other_machines_are_let_in_with_keys_only() -> None:
    with pytest.raises(ValidationError, match="REQUIRE_API_KEY"):
        Settings(host="0.0.0.0")
    with pytest.raises(ValidationError, match="loopback only"):
        Settings(host="192.168.1.2", require_api_key=True, code_dir=Path("/srv/code"))
    assert Settings(host="0.0.0.0", require_api_key=True).hosts == ("*",)
    assert Settings(host="::1").hosts == Settings().hosts


def test_settings_follow_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PARETOPRESS_DATA_DIR", str(tmp_path))
    found = Settings()
    assert found.database_url == f"sqlite:///{tmp_path}/paretopress.db"
    assert found.store_url == f"file://{tmp_path}/store"
    with pytest.raises(ValidationError, match="no_such"):
        Settings(no_such=1)  # type: ignore[call-arg]


def test_the_dashboard_and_plotly_are_served(api: World) -> None:
    assert api.client.get("/", follow_redirects=False).headers["location"] == "/dashboard/"
    answer = api.client.get("/dashboard/plotly.min.js")
    assert answer.status_code == 200
    assert "plotly.js v" in answer.text[:200]
    assert "max-age" in answer.headers["cache-control"]
    again = {"if-none-match": answer.headers["etag"]}
    assert api.client.get("/dashboard/plotly.min.js", headers=again).status_code == 304
    assert_problem(api.client.get("/dashboard/no-such.js"), 404, "not-found")
    assert_problem(api.client.get("/dashboard/..%2f..%2fsettings.py"), 404, "not-found")


def test_slugs_are_stable() -> None:
    assert errors.SLUGS == (
        "agent-refused",
        "attempt-stale",
        "bad-request",
        "body-too-large",
        "code-not-allowed",
        "content-missing",
        "cursor-invalid",
        "data-refused",
        "database-unreachable",
        "host-refused",
        "idempotency-key-in-flight",
        "idempotency-key-reused",
        "illegal-state",
        "internal",
        "key-forbidden",
        "key-required",
        "media-type",
        "method-not-allowed",
        "model-refused",
        "name-taken",
        "not-found",
        "not-ready",
        "path-not-allowed",
        "pool-mismatch",
        "range-unsatisfiable",
        "rejected",
        "result-implausible",
        "too-many-streams",
        "unreachable-constraint",
        "validation",
    )
