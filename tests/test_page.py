"""The chat page in a real browser, in front of a model whose answers a test writes."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from aipc.errors import RuntimeFailedError
from aipc.serve.guard import Policy
from aipc.types import Message, Sampling
from serving import ANSWER, Served, serving

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
Browser, Page, expect = sync_api.Browser, sync_api.Page, sync_api.expect

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(_CHROMIUM is None, reason="there is no chromium to open the page with")

HOSTILE = """# <img src=x onerror="window.ran = 1">

<script>window.ran = 2</script>

[click](javascript:window.ran=3) [data](data:text/html,<script>window.ran=4</script>)
![picture](http://198.51.100.7/x.png) <javascript:window.ran=5> **<b onclick="window.ran=6">bold</b>**

```"><script>window.ran=7</script>
<svg onload="window.ran=8">
```

[**good** <i>](https://example.org/a?b=c)"""

RICH = """## Steps

1. First **bold** and *slanted*
   - below
2. Second with `code()`

| a | b |
| - | - |
| 1 | 2 |

```python
print("hello")
```

> said"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("page")) as served:
        yield served


@pytest.fixture
def served(server: Served) -> Served:
    """The server, whose model says ANSWER and has not been asked anything."""
    session = server.session
    session.play = server.saying(ANSWER)
    session.prompts.clear()
    session.samplings.clear()
    session.ended = 0
    return server


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """The page as one sees it who has never been here; it asks nobody else, and breaks no policy."""
    with browser.new_context() as context:
        page = context.new_page()
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(served.url)
        expect(page.get_by_label("Model", exact=True)).to_have_value("scripted")
        yield page
        assert [url for url in asked if not url.startswith((served.url, "data:", "blob:"))] == []
        assert [line for line in said if "Content Security Policy" in line or "Error" in line] == []


def ask(page: Page, text: str = "What is an NPU?") -> None:
    page.get_by_label("Your question").fill(text)
    page.get_by_role("button", name="Send", exact=True).click()


def answer_of(page: Page) -> object:
    return page.locator(".assistant .content").last


def test_a_client_that_is_no_browser_is_told_that_it_runs(served: Served) -> None:
    assert httpx.get(served.url).text == "aipc is running"
    for_browser = httpx.get(served.url, headers={"Accept": "text/html,*/*;q=0.8"})
    assert "<!doctype html>" in for_browser.text
    assert for_browser.headers["vary"] == "Accept"
    script = httpx.get(f"{served.url}/static/main.js")
    assert script.headers["content-type"].startswith("text/javascript")
    for name in ("nothing.js", "..%2fpage.py", "%2e%2e/page.py", "page.py", ""):
        assert httpx.get(f"{served.url}/static/{name}").status_code == 404


def test_the_devices_and_the_loaded_models_are_told(served: Served) -> None:
    activity = httpx.get(f"{served.url}/monitor", timeout=30).json()
    assert activity["models"] == [
        {
            "id": "scripted",
            "device": "CPU",
            "device_id": "CPU",
            "runtime": "onnxruntime",
            "runtime_name": "a script",
            "precision": "int4",
            "auto": True,
            "notes": [],
        }
    ]
    assert activity["failure"] == ""
    (cpu,) = [device for device in activity["devices"] if device["id"] == "CPU"]
    assert cpu["not_readable"] or 0 <= cpu["utilisation"] <= 1
    assert 0 < cpu["memory_used_bytes"] < cpu["memory_total_bytes"]


@needs_chromium
def test_an_answer_comes_with_its_figures_and_outlives_a_reload(page: Page, served: Served) -> None:
    ask(page)
    expect(answer_of(page)).to_have_text(ANSWER)
    tokens = len(served.text.encode(ANSWER)) + 1
    figures = page.locator(".assistant .figures")
    expect(figures).to_contain_text("CPU · a script · int4 · first token")
    expect(figures).to_contain_text(f"{tokens} tokens")
    expect(page.get_by_role("status")).to_have_text(ANSWER)
    # The line below the answer joins the device's utilisation and the answer's speed.
    expect(page.locator("#figures")).to_have_text(re.compile(r"^CPU \d+ % · .*tokens/s"))
    page.reload()
    expect(answer_of(page)).to_have_text(ANSWER)
    expect(page.locator("#conversation-list")).to_have_text("What is an NPU?")
    ask(page, "And then?")
    expect(page.locator(".assistant")).to_have_count(2)
    expect(page.locator(".assistant .content").last).to_have_text(ANSWER)
    turns = [("user", "What is an NPU?"), ("assistant", ANSWER), ("user", "And then?")]
    assert served.session.prompts[-1] == served.text.encode_chat([Message(*turn) for turn in turns])


@needs_chromium
def test_a_question_waits_for_the_list_of_models(page: Page) -> None:
    held = []
    # playwright takes no method of a list here
    page.route("**/v1/models", lambda route: held.append(route), times=1)  # noqa: PLW0108
    page.reload()
    ask(page)
    expect(answer_of(page)).to_have_text(ANSWER)
    (late,) = held
    late.continue_()


@needs_chromium
def test_stop_keeps_what_has_come_and_ends_the_work(page: Page, served: Served) -> None:
    release = threading.Event()

    def endless(prompt: list[int], sampling: Sampling) -> Iterator[int]:
        yield from served.text.encode("The neural processing unit")
        release.wait(30)
        yield from served.text.encode(" never says this" * 50)

    served.session.play = endless
    ask(page)
    expect(answer_of(page)).to_contain_text("The neural")
    expect(answer_of(page)).to_have_attribute("aria-busy", "true")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.").first).to_be_visible()
    expect(page.get_by_label("Your question")).to_be_focused()
    release.set()
    served.session.play = served.saying(ANSWER)
    ask(page, "Once more")
    expect(answer_of(page)).to_have_text(ANSWER)
    expect(page.locator(".assistant .content").first).to_contain_text("The neural")
    expect(page.get_by_text("never says")).to_have_count(0)


@needs_chromium
def test_an_error_is_shown_and_retry_asks_again(page: Page, served: Served) -> None:
    def broken(prompt: list[int], sampling: Sampling) -> Iterator[int]:
        yield from served.text.encode("The neural")
        raise RuntimeFailedError("the driver was reset", hint="ask again")

    served.session.play = broken
    ask(page)
    expect(page.locator(".assistant .wrong")).to_have_text("the driver was reset; ask again")
    served.session.play = served.saying(ANSWER)
    page.get_by_role("button", name="Retry").click()
    expect(answer_of(page)).to_have_text(ANSWER)
    expect(page.locator(".wrong")).to_have_count(0)
    # A request that is refused before it begins is shown in the same place.
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page)
    expect(page.locator(".assistant .wrong")).to_have_text(
        "The server can't be reached. Is aipc serve running?"
    )


@needs_chromium
def test_nothing_in_a_hostile_answer_runs(page: Page, served: Served) -> None:
    served.session.play = served.saying(HOSTILE)
    ask(page, HOSTILE)
    content = answer_of(page)
    expect(page.locator(".assistant .figures")).to_be_visible()
    page.reload()
    expect(content.locator("h4")).to_have_text('<img src=x onerror="window.ran = 1">')
    expect(content).to_contain_text("<script>window.ran = 2</script>")
    expect(content).to_contain_text("[click](javascript:window.ran=3)")
    expect(content.locator("pre code")).to_have_text('<svg onload="window.ran=8">')
    links = content.locator("a").evaluate_all("all => all.map(a => [a.href, a.rel, a.textContent])")
    assert links == [
        ["http://198.51.100.7/x.png", "noopener noreferrer", "picture"],
        ["https://example.org/a?b=c", "noopener noreferrer", "good <i>"],
    ]
    assert page.locator("#messages :is(script, img, svg, iframe, b, i)").count() == 0
    assert page.evaluate("window.ran") is None


@needs_chromium
@pytest.mark.parametrize("piece", ["[", "*a ", "**a", "`", "[a](", "> ", "- ", "_a", "~~", "|", "1. "])
def test_marks_without_an_end_are_text(page: Page, piece: str) -> None:
    """Each is repeated as often as the longest answers have room for."""
    text = piece * 30_000
    shown = page.evaluate(
        """async (text) => {
            const { MarkdownView } = await import("/static/markdown.js");
            const place = document.createElement("div");
            new MarkdownView(place).show(text);
            return place.textContent.length;
        }""",
        text,
    )
    assert shown <= len(text)


@needs_chromium
def test_markdown_looks_the_same_whole_and_in_pieces(page: Page) -> None:
    whole, growing, kept = page.evaluate(
        """async (text) => {
            const { MarkdownView } = await import("/static/markdown.js");
            const [whole, growing] = [document.createElement("div"), document.createElement("div")];
            new MarkdownView(whole).show(text);
            const view = new MarkdownView(growing);
            let first = null;
            for (let end = 1; end <= text.length; end += 1) {
                view.show(text.slice(0, end));
                if (end === 20) first = growing.firstChild;
            }
            return [whole.innerHTML, growing.innerHTML, first === growing.firstChild];
        }""",
        RICH,
    )
    assert whole == growing
    assert kept, "a block that is complete is not made anew, so a selection in it stays"
    assert whole == (
        "<h5>Steps</h5>"
        "<ol><li>First <strong>bold</strong> and <em>slanted</em><ul><li>below</li></ul></li>"
        "<li>Second with <code>code()</code></li></ol>"
        "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table>"
        '<figure class="code"><figcaption><span>python</span>'
        '<button type="button" aria-label="Copy the code">Copy</button></figcaption>'
        '<pre tabindex="0"><code>print("hello")</code></pre></figure>'
        "<blockquote><p>said</p></blockquote>"
    )


@needs_chromium
def test_everything_goes_by_keyboard(page: Page, served: Served) -> None:
    question = page.get_by_label("Your question")
    expect(question).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(answer_of(page)).to_have_text(ANSWER)
    expect(page.locator(".user .content")).to_have_text("one\ntwo", use_inner_text=True)
    expect(question).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="Retry")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="Edit")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Edit")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Control+A")
    page.keyboard.type("three")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".user .content")).to_have_text("three")
    expect(answer_of(page)).to_have_text(ANSWER)
    expected = served.text.encode_chat([Message("user", "three")])
    assert served.session.prompts[-1] == expected
    hidden = "e => !(e.innerText || e.getAttribute('aria-label') || e.labels?.length)"
    nameless = page.locator("button, input, select, textarea").evaluate_all(
        f"all => all.filter({hidden}).length"
    )
    assert nameless == 0


@needs_chromium
def test_settings_reach_the_model_and_stay(page: Page, served: Served) -> None:
    page.get_by_label("System prompt").fill("Be brief.")
    values = {"Temperature": "0.5", "Top p": "0.25", "Most tokens": "7", "Seed": "3"}
    for label, value in values.items():
        page.get_by_label(label).fill(value)
    ask(page)
    expect(page.locator(".assistant .figures")).to_contain_text("7 tokens")
    (sampling,) = served.session.samplings
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens, sampling.seed) == (0.5, 0.25, 7, 3)
    turns = [Message("system", "Be brief."), Message("user", "What is an NPU?")]
    assert served.session.prompts == [served.text.encode_chat(turns)]
    page.reload()
    for label, value in {"System prompt": "Be brief.", **values}.items():
        expect(page.get_by_label(label)).to_have_value(value)


@needs_chromium
def test_conversations_are_kept_exported_and_deleted(page: Page) -> None:
    ask(page, "first")
    expect(answer_of(page)).to_have_text(ANSWER)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("#messages li")).to_have_count(0)
    ask(page, "second")
    expect(answer_of(page)).to_have_text(ANSWER)
    names = page.locator("#conversation-list button")
    expect(names).to_have_text(["second", "first"])
    names.last.click()
    expect(page.locator(".user .content")).to_have_text("first")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    exported = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    said = [(message["role"], message["content"]) for message in exported["messages"]]
    assert said == [("user", "first"), ("assistant", ANSWER)]
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    expect(names).to_have_text(["second"])
    page.reload()
    expect(names).to_have_text(["second"])


@needs_chromium
def test_code_is_copied(page: Page, served: Served) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    served.session.play = served.saying(RICH)
    ask(page)
    page.get_by_role("button", name="Copy the code").click()
    expect(page.get_by_role("button", name="Copy the code")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == 'print("hello")'


@needs_chromium
def test_a_phone_needs_no_scrolling_sideways(page: Page, served: Served) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    served.session.play = served.saying(RICH + "\n\n```\n" + "wide " * 50 + "\n```\n\n" + "unbroken" * 30)
    ask(page, "long" * 50)
    expect(page.locator(".assistant .figures")).to_be_visible()
    fits = (
        "document.scrollingElement.scrollWidth <= innerWidth && messages.scrollWidth <= messages.clientWidth"
    )
    assert page.evaluate(fits)
    settings = page.get_by_role("button", name="Settings")
    expect(page.get_by_label("System prompt")).to_be_hidden()
    settings.click()
    expect(settings).to_have_attribute("aria-expanded", "true")
    expect(page.get_by_label("System prompt")).to_be_visible()
    assert page.evaluate(fits)
    page.keyboard.press("Escape")
    expect(page.get_by_label("System prompt")).to_be_hidden()
    expect(settings).to_be_focused()


@needs_chromium
def test_a_server_with_a_key_asks_for_it(browser: Browser, tmp_path: Path) -> None:
    key = "a-key-that-nobody-guesses"
    with serving(tmp_path, policy=Policy(api_key=key)) as served, browser.new_context() as context:
        page = context.new_page()
        page.goto(served.url)
        field = page.get_by_label("API key", exact=True)
        expect(field).to_be_focused()
        field.fill("wrong")
        page.keyboard.press("Enter")
        expect(field).to_have_value("")
        field.fill(key)
        page.keyboard.press("Enter")
        expect(field).to_be_hidden()
        ask(page)
        expect(answer_of(page)).to_have_text(ANSWER)
