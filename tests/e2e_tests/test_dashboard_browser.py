"""The dashboard in a real Chromium against the real API: what it shows is what the rows say."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import uvicorn

from paretopress.embedded import free_port
from service.app import create_app
from service.db import jobs, sensitivity
from service.db.sensitivity import ProfileKey
from service.db.session import Database
from service.settings import Settings
from tests.client_tests.stored_job import CHECKPOINT, StoredJob, checkpoint_zip
from workers.open_store import open_store
from workers.store import ArtifactStore

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-gpu",
]
# Hostile as a name: shown as text it is harmless, read as HTML it sets a global.
NAME = "<img src=x onerror='window.hacked=1'><b>edge</b>"
WAIT_MS = 15_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("No chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", port=free_port(), event_poll_s=0.05)


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    config = uvicorn.Config(
        create_app(settings),
        port=settings.port,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    root = f"http://127.0.0.1:{settings.port}"
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline, "the API did not start within 20 s"
        time.sleep(0.05)
    yield root
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def database(settings: Settings, url: str) -> Iterator[Database]:
    database = Database(settings.database_url)
    yield database
    database.close()


@pytest.fixture
def store(settings: Settings) -> ArtifactStore:
    return open_store(settings.store_url)


class Watched:
    """A page whose errors and foreign requests are remembered."""

    def __init__(self, browser: Browser, scheme: str = "light") -> None:
        self.context = browser.new_context(
            color_scheme="dark" if scheme == "dark" else "light", accept_downloads=True
        )
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.page.set_default_timeout(WAIT_MS)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console",
            lambda message: self.errors.append(message.text) if message.type == "error" else None,
        )
        self.page.on("request", lambda request: self.hosts.add(httpx.URL(request.url).host))

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    found = Watched(browser)
    yield found
    found.close()


def test_an_ended_job_is_found_drawn_and_pulled(
    url: str, database: Database, store: ArtifactStore, watched: Watched
) -> None:
    stored = StoredJob(database, store, name=NAME)
    stored.start()
    stored.search(10)
    stored.succeed()
    page = watched.page
    page.goto(f"{url}/dashboard/")
    link = page.get_by_role("link", name=NAME)
    link.wait_for()
    assert "SUCCEEDED (front found)" in page.inner_text("main")
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".chart .plot-container .trace")
    assert stored.id in page.url
    assert page.inner_text("h1") == NAME
    bounds = page.inner_text("ul.constraints")
    assert "latency p50 on local/onnxruntime ≤ 0.7 × baseline" in bounds
    assert "top-1 ≥ baseline − 20.00 %" in bounds
    tables = page.locator("table")
    front, trials = tables.nth(0), tables.nth(1)
    assert front.locator("tbody tr").count() == 3
    assert "baseline" in front.locator("tbody tr").nth(0).inner_text()
    assert trials.locator("tbody tr").count() == 11
    assert trials.locator("text=holds all").count() >= 1
    drawn = page.evaluate("document.querySelector('.chart').data.map(t => [t.name, t.x.length])")
    counts = dict(drawn)
    assert counts["front"] == 2
    assert counts["baseline"] == 1
    assert counts["within the bounds"] + counts["outside the bounds"] == 11
    shapes = page.evaluate("document.querySelector('.chart').layout.shapes.length")
    assert shapes == 2
    with page.expect_download() as download:
        front.get_by_role("link", name="checkpoint").first.click()
    assert Path(download.value.path()).read_bytes() == checkpoint_zip()
    assert len(CHECKPOINT) == 2
    assert page.evaluate("window.hacked") is None
    assert watched.errors == []
    assert watched.hosts == {"127.0.0.1"}


def test_a_running_job_is_followed_live_to_its_end(
    url: str, database: Database, store: ArtifactStore, watched: Watched
) -> None:
    stored = StoredJob(database, store)
    stored.start()
    stored.search(3)
    page = watched.page
    page.goto(f"{url}/dashboard/#/jobs/{stored.id}")
    page.wait_for_selector("#connection:has-text('live')")
    page.wait_for_selector("caption:has-text('4 trials')")
    assert "neither recovered nor confirmed" in page.inner_text("main")
    stored.search(4)
    page.wait_for_selector("caption:has-text('8 trials')")
    page.wait_for_selector("text=7 of 12 trials")
    stored.succeed()
    page.wait_for_selector("text=SUCCEEDED (front found)")
    page.wait_for_selector("caption:has-text('held-out data')")
    page.wait_for_selector("#connection:has-text('ended')")
    assert page.get_by_role("button", name="Cancel the job").count() == 0
    assert watched.errors == []


def test_layers_show_what_is_damaged_and_what_is_decided(
    url: str, database: Database, store: ArtifactStore, watched: Watched
) -> None:
    stored = StoredJob(database, store)
    stored.start()
    stored.search(10)
    effects = [
        {
            "site": "b0.conv1",
            "decision": {"kind": "prune_channels", "keep_channels": keep, "selector": "l2"},
            "damage": damage,
            "macs": 1000,
            "params": 100,
        }
        for keep, damage in ((8, 0.25), (4, 1.5))
    ]
    left_out = [{**effects[0], "site": "b1.conv1", "reason": "60 s of computing were over"}]
    with database.write() as session:
        model_id = jobs.get(session, stored.id).model_id
        key = ProfileKey.of(stored.spec.model, stored.spec.dataset, model_id)
        sensitivity.claim(session, key, "test", 60.0)
        sensitivity.put(
            session,
            key,
            {
                "effects": effects,
                "left_out": left_out,
                "images": 500,
                "temperature": 4.0,
                "selector": "l2",
                "seconds": 3.0,
            },
        )
    stored.succeed()
    page = watched.page
    page.goto(f"{url}/dashboard/#/jobs/{stored.id}")
    layers = page.locator("section.layers")
    layers.locator(".plot-container .trace").first.wait_for(state="attached")
    text = layers.inner_text()
    assert "500 calibration images" in text
    assert "Options left out: 1" in text
    row = layers.locator("tbody tr").filter(has_text="b0.conv1")
    assert "keep 8 of" in row.inner_text()
    assert "0.25" in row.inner_text()
    assert "→" in layers.locator("tbody").inner_text()
    assert "Member 0" in layers.locator("thead").inner_text()
    bars = page.evaluate(
        "document.querySelector('.layers .chart').data.map(t => [t.type, t.y.length])"
    )
    assert {kind for kind, _ in bars} == {"bar"}
    assert sum(count for _, count in bars) == 2
    assert watched.errors == []


def test_a_job_is_cancelled_by_keyboard(
    url: str, database: Database, store: ArtifactStore, watched: Watched
) -> None:
    stored = StoredJob(database, store)
    page = watched.page
    page.goto(f"{url}/dashboard/#/jobs/{stored.id}")
    button = page.get_by_role("button", name="Cancel the job")
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("text=CANCELLED (cancelled)")
    assert watched.errors == []


def test_the_axes_are_chosen_and_kept_in_the_address(
    url: str, database: Database, store: ArtifactStore, watched: Watched
) -> None:
    stored = StoredJob(database, store)
    stored.start()
    stored.search(4)
    page = watched.page
    page.goto(f"{url}/dashboard/#/jobs/{stored.id}")
    page.wait_for_selector(".chart .plot-container .trace")
    page.select_option("select[data-axis=x]", "macs")
    title = "document.querySelector('.chart').layout.xaxis.title.text"
    page.wait_for_function(f"{title} === 'MACs'")
    assert "x=macs" in page.url
    page.reload()
    page.wait_for_selector(".chart .plot-container .trace")
    assert page.evaluate(title) == "MACs"
    assert watched.errors == []


def test_it_follows_the_systems_dark_theme(url: str, browser: Browser) -> None:
    shades = {}
    for scheme in ("light", "dark"):
        watched = Watched(browser, scheme)
        watched.page.goto(f"{url}/dashboard/")
        watched.page.wait_for_selector("text=No jobs yet")
        colour = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades[scheme] = sum(int(part) for part in colour[4:-1].split(","))
        assert watched.errors == []
        watched.close()
    assert shades["light"] > 700
    assert shades["dark"] < 100


def test_an_unknown_job_says_so(url: str, watched: Watched) -> None:
    watched.page.goto(f"{url}/dashboard/#/jobs/job_nothing")
    alert = watched.page.get_by_role("alert")
    alert.wait_for()
    assert "job_nothing" in alert.inner_text()
    watched.page.get_by_role("link", name="Jobs").click()
    watched.page.wait_for_selector("text=No jobs yet")
