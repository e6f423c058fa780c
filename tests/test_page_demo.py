"""The chat page in front of the demo model and its real workers: choosing one, and pulling its plug."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from browsing import Browser, Page, answer_of, ask, chromium, expect, needs_chromium
from served_program import Program, environment_with, program

pytestmark = needs_chromium

RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO GenAI"}
ANSWER = "An NPU (neural processing unit)"
# The demo model has never seen the sign that would end it.
ENDLESS = {"type": "regex", "pattern": "(the |neural |unit )*~"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with program(environment_with(tmp_path_factory.mktemp("cache")), "demo") as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, served: Program) -> Iterator[Page]:
    with browser.new_context() as context:
        page = context.new_page()
        # A runtime may have to convert and load the model first.
        page.set_default_timeout(60_000)
        page.goto(served.url)
        yield page


def choose(page: Page, runtime: str) -> None:
    page.get_by_label("Device", exact=True).select_option(f"CPU {runtime}")


def worker_of(served: Program, runtime: str) -> Any:
    (worker,) = [one for one in served.workers() if f"aipc.runtimes.{runtime}" in " ".join(one.cmdline())]
    return worker


def until_it_speaks(page: Page) -> None:
    """Wait for the first words of an answer, and look at each frame for them: it ends in seconds."""
    page.wait_for_function(
        "() => document.querySelector('.assistant .content')?.textContent.includes('neural')", timeout=60_000
    )


def without_an_end(page: Page) -> None:
    """The next answer goes on until the context is full."""

    def lengthen(route: Any) -> None:
        body = route.request.post_data_json | {"response_format": ENDLESS}
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/chat/completions", lengthen, times=1)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_chosen_runtime_answers(page: Page, runtime: str) -> None:
    choose(page, runtime)
    ask(page)
    expect(answer_of(page)).to_contain_text(ANSWER, timeout=60_000)
    expect(page.locator(".assistant .figures")).to_contain_text(f"CPU · {RUNTIMES[runtime]} · int4")
    expect(page.locator("#answers-on")).to_have_text(f"Answers on CPU with {RUNTIMES[runtime]}, int4.")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_worker_killed_in_the_middle_of_an_answer(page: Page, served: Program, runtime: str) -> None:
    choose(page, runtime)
    without_an_end(page)
    ask(page)
    answer = answer_of(page)
    until_it_speaks(page)
    worker = worker_of(served, runtime)
    worker.kill()
    wrong = page.locator(".assistant .wrong")
    expect(wrong).to_contain_text("the runtime's process")
    expect(wrong).to_contain_text("ask again, which starts it anew")
    expect(answer).to_have_attribute("aria-busy", "false")
    expect(page.get_by_role("status")).to_contain_text("the runtime's process")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    arrived = answer.inner_text()
    assert "neural" in arrived
    page.reload()
    expect(answer_of(page)).to_have_text(arrived)
    expect(wrong).to_contain_text("the runtime's process")
    page.get_by_role("button", name="Retry").click()
    expect(answer_of(page)).to_contain_text(ANSWER, timeout=60_000)
    expect(page.locator(".wrong")).to_have_count(0)
    assert worker_of(served, runtime).pid != worker.pid


def test_a_worker_killed_while_nobody_asks_is_not_noticed(page: Page, served: Program) -> None:
    ask(page)
    expect(page.locator(".assistant .figures")).to_have_count(1, timeout=60_000)
    worker = worker_of(served, "onnxruntime")
    worker.kill()
    ask(page)
    expect(page.locator(".assistant .figures")).to_have_count(2, timeout=60_000)
    expect(page.locator(".wrong")).to_have_count(0)
    expect(answer_of(page)).not_to_be_empty()
    assert worker_of(served, "onnxruntime").pid != worker.pid


def test_a_server_that_ends_leaves_what_has_come(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with (
        program(environment_with(tmp_path_factory.mktemp("cache")), "demo") as served,
        browser.new_context() as context,
    ):
        page = context.new_page()
        page.goto(served.url)
        expect(page.get_by_label("Model", exact=True)).to_have_value("demo")
        without_an_end(page)
        ask(page)
        until_it_speaks(page)
        workers = served.workers()
        served.process.kill()
        expect(page.locator(".assistant .wrong")).to_have_text(
            "The server can't be reached. Is aipc serve running?"
        )
        expect(answer_of(page)).to_contain_text("neural")
        # None of them outlives the server.
        for worker in workers:
            worker.wait(30)
