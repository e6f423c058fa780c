"""The chat page in a real browser, in front of a model whose answers a test writes."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from aipc.errors import RuntimeFailedError
from aipc.inventory import Candidate
from aipc.plan import Plan
from aipc.runtimes.base import OPENVINO, Device
from aipc.serve.guard import Policy
from aipc.types import Message, Sampling
from browsing import Browser, Page, answer_of, ask, chromium, expect, needs_chromium, with_settings
from serving import ANSWER, CPU, CPU_TOO, NPU, Served, serving

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
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("page")) as served:
        yield served


@pytest.fixture
def served(server: Served) -> Served:
    """The server, whose model says ANSWER and has not been asked anything."""
    server.session.begin(server.saying(ANSWER))
    server.places.plan = Plan((CPU,), named=False)
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
    expect(answer_of(page)).to_have_attribute("aria-busy", "true")
    (late,) = held
    late.continue_()
    expect(answer_of(page)).to_have_text(ANSWER)


@needs_chromium
def test_a_list_of_models_that_did_not_come_is_asked_for_again(page: Page) -> None:
    page.route("**/v1/models", lambda route: route.abort(), times=1)
    page.reload()
    expect(page.get_by_role("alert")).to_have_text("The server can't be reached. Is aipc serve running?")
    ask(page)
    expect(answer_of(page)).to_have_text(ANSWER)


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
def test_the_policy_stands_behind_the_page(browser: Browser, served: Served) -> None:
    """What a mistake in the page would let in, the browser still refuses."""
    expected = ["require-trusted-types-for", "trusted-types", "style-src-attr", "style-src-elem", "img-src"]
    expected += ["frame-src", "base-uri", "connect-src", "form-action"]
    attempts = """async (expected) => {
        const broken = [];
        addEventListener("securitypolicyviolation", (event) => broken.push(event.effectiveDirective));
        const tried = async (act) => { try { await act(); } catch {} };
        const made = (name, fields) => Object.assign(document.createElement(name), fields);
        const added = (name, fields) => document.body.append(made(name, fields));
        await tried(() => (document.body.innerHTML += "<b>x</b>"));
        await tried(() => trustedTypes.createPolicy("anything", { createHTML: (text) => text }));
        await tried(() => document.body.setAttribute("style", "color: red"));
        await tried(() => added("style", { textContent: "b { color: red }" }));
        await tried(() => added("img", { src: "http://198.51.100.7/x.png" }));
        await tried(() => added("iframe", { src: "http://198.51.100.7/" }));
        await tried(() => added("base", { href: "http://198.51.100.7/" }));
        await tried(() => fetch("http://198.51.100.7/"));
        await tried(() => {
            const form = made("form", { action: "http://198.51.100.7/" });
            document.body.append(form);
            form.submit();
        });
        const script = document.createElement("script");
        script.append("window.ran = 1");
        await tried(() => document.body.append(script));
        const missing = () => expected.filter((directive) => !broken.includes(directive));
        for (let turn = 0; turn < 500 && missing().length; turn += 1) {
            await new Promise((done) => setTimeout(done, 10));
        }
        return [missing(), window.ran ?? null];
    }"""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(served.url)
        assert page.evaluate(attempts, expected) == [[], None]


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


def sent(page: Page) -> list[dict[str, Any]]:
    """The bodies of the questions that the page will send."""
    bodies: list[dict[str, Any]] = []

    def note(request: Any) -> None:
        if request.url.endswith("/v1/chat/completions"):
            bodies.append(request.post_data_json)

    page.on("request", note)
    return bodies


@needs_chromium
def test_each_conversation_has_its_model_and_device(page: Page, served: Served) -> None:
    served.places.plan = Plan((CPU, CPU_TOO), named=False, notes=("ONNX Runtime is taken: it is faster",))
    page.reload()
    device = page.get_by_label("Device", exact=True)
    expect(device.locator("option")).to_have_text(
        ["auto: CPU · ONNX Runtime", "CPU · ONNX Runtime · a processor", "CPU · OpenVINO GenAI · a processor"]
    )
    expect(device).to_have_value("")
    expect(page.locator("#notes")).to_have_text("ONNX Runtime is taken: it is faster")
    bodies = sent(page)
    ask(page, "first")
    expect(answer_of(page)).to_have_text(ANSWER)
    page.get_by_role("button", name="New conversation").click()
    device.select_option(label="CPU · OpenVINO GenAI · a processor")
    expect(page.locator("#why")).to_be_hidden()
    ask(page, "second")
    expect(answer_of(page)).to_have_text(ANSWER)
    assert [(body.get("device"), body.get("runtime")) for body in bodies] == [
        (None, None),
        ("CPU", "openvino"),
    ]
    assert len(served.placed["scripted", "CPU", "openvino"].prompts) == 1
    page.reload()
    expect(device).to_have_value("CPU openvino")
    page.locator("#conversation-list").get_by_role("button", name="first").click()
    expect(device).to_have_value("")
    page.locator("#conversation-list").get_by_role("button", name="second").click()
    expect(device).to_have_value("CPU openvino")
    # A device that has gone stays the conversation's, and is never replaced in silence.
    served.places.plan = Plan((CPU,), named=False)
    served.pool.entries.pop(("scripted", "CPU", "openvino"))
    page.reload()
    expect(device.locator("option:checked")).to_have_text("CPU · openvino · not here")
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".assistant .wrong")).to_contain_text("scripted cannot run here with device 'CPU'")
    device.select_option("")
    page.get_by_role("button", name="Retry").click()
    expect(answer_of(page)).to_have_text(ANSWER)
    expect(page.locator(".wrong")).to_have_count(0)


@needs_chromium
def test_a_conversation_goes_on_with_its_model(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, ("one", "two")) as served, browser.new_context() as context:
        page = context.new_page()
        page.goto(served.url)
        model = page.get_by_label("Model", exact=True)
        expect(model).to_have_value("one")
        ask(page, "first")
        expect(answer_of(page)).to_have_text(ANSWER)
        page.get_by_role("button", name="New conversation").click()
        model.select_option("two")
        ask(page, "second")
        expect(answer_of(page)).to_have_text(ANSWER)
        assert served.loads == ["one", "two"]
        page.reload()
        expect(model).to_have_value("two")
        page.locator("#conversation-list button").last.click()
        expect(model).to_have_value("one")
        expect(page.locator(".message-head")).to_have_text(["You", "one"])


@needs_chromium
def test_what_verify_found_and_what_the_model_said_is_shown(
    page: Page, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = "aipc verify found this model suspicious on NPU: it loses 0.4 nats"
    monkeypatch.setattr("aipc.serve.cards.warning", lambda name, place: found if place is NPU else None)
    served.places.plan = Plan((CPU, NPU), named=False)
    page.reload()
    expect(page.locator("#warning")).to_be_hidden()
    expect(page.locator("#why")).to_be_hidden()
    device = page.get_by_label("Device", exact=True)
    device.select_option("NPU openvino")
    expect(page.locator("#warning")).to_have_text(found)
    served.notes = (found, "memory holds a context of 512 tokens")
    ask(page)
    page.get_by_text("Why, and what to know").click()
    expect(page.locator("#notes li")).to_have_text(["memory holds a context of 512 tokens"])
    expect(page.locator("#notes li")).to_be_visible()
    device.select_option("CPU onnxruntime")
    expect(page.locator("#warning")).to_be_hidden()
    device.select_option("NPU openvino")
    expect(page.locator("#answers-on")).to_have_text("Answers on NPU with a script, int4.")


@needs_chromium
def test_the_device_beside_an_answer_is_the_one_that_answers(page: Page, served: Served) -> None:
    """Two GPUs, of which the second answers where nothing is chosen, and an NPU."""

    def device(number: str, kind: str, utilisation: float | None) -> dict[str, Any]:
        unknown = dict.fromkeys(("memory_used_bytes", "memory_total_bytes", "power_w"))
        return {
            "id": number,
            "name": kind,
            "kind": kind,
            "utilisation": utilisation,
            "not_readable": "",
            **unknown,
        }

    def model(word: str, device_id: str | None, *, auto: bool) -> dict[str, Any]:
        fixed = {
            "id": "scripted",
            "runtime": "openvino",
            "runtime_name": "OpenVINO GenAI",
            "precision": "int4",
        }
        return {**fixed, "device": word, "device_id": device_id, "auto": auto, "notes": []}

    activity = {
        "time_s": 1.0,
        "failure": "",
        "devices": [
            device("0000:00:02.0", "integrated GPU", 0.11),
            device("0000:03:00.0", "integrated GPU", 0.22),
            device("0000:00:0b.0", "NPU", 0.33),
            device("CPU", "CPU", None),
        ],
        "models": [
            model("GPU.0", "0000:00:02.0", auto=False),
            model("GPU.1", "0000:03:00.0", auto=True),
            model("NPU", "0000:00:0b.0", auto=False),
            model("CPU", "CPU", auto=False),
            model("CUDA:0", None, auto=False),
        ],
    }
    words = ["GPU.0", "GPU.1", "NPU", "CPU", "CUDA:0"]
    served.places.plan = Plan(
        tuple(Candidate(OPENVINO, Device(word, "made up", "CPU")) for word in words), named=False
    )
    page.route("**/monitor", lambda route: route.fulfill(json=activity))
    page.reload()
    figures, choice = page.locator("#figures"), page.get_by_label("Device", exact=True)
    for word, expected in {
        "": "integrated GPU 22 %",
        "GPU.0 openvino": "integrated GPU 11 %",
        "NPU openvino": "NPU 33 %",
        "CPU openvino": "CPU not readable",
        "CUDA:0 openvino": "",
    }.items():
        choice.select_option(word)
        expect(figures).to_have_text(expected)
    # What is chosen for the next question says nothing of the answer that comes.
    hold = threading.Event()

    def waits(prompt: list[int], sampling: Sampling) -> Iterator[int]:
        yield from served.text.encode("The neural")
        hold.wait(30)

    choice.select_option("NPU openvino")
    ask(page)
    expect(answer_of(page)).to_have_text(ANSWER)
    served.placed["scripted", "NPU", "openvino"].play = waits
    ask(page)
    expect(answer_of(page)).to_contain_text("The neural")
    choice.select_option("GPU.0 openvino")
    expect(figures).to_contain_text("NPU 33 % · first token")
    hold.set()
    expect(figures).to_contain_text("integrated GPU 11 % · first token")


@needs_chromium
def test_a_browser_that_keeps_nothing_is_told_so_and_the_page_works(
    browser: Browser, served: Served, tmp_path: Path
) -> None:
    """With cookies blocked, Chromium throws where a page names its storage."""
    preferences = tmp_path / "Default" / "Preferences"
    preferences.parent.mkdir()
    blocked = {"profile": {"default_content_setting_values": {"cookies": 2}}}
    preferences.write_text(json.dumps(blocked), encoding="utf-8")
    with with_settings(browser, tmp_path) as context:
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(served.url)
        with pytest.raises(Exception, match="Access is denied"):
            page.evaluate("localStorage.length")
        expect(page.get_by_role("alert")).to_contain_text("This browser keeps nothing for this page")
        for text in ("first", "second"):
            page.get_by_role("button", name="New conversation").click()
            ask(page, text)
            expect(answer_of(page)).to_have_text(ANSWER)
        expect(page.locator("#conversation-list button")).to_have_text(["second", "first"])
        page.get_by_label("Temperature").fill("0.5")
        page.get_by_label("Temperature").press("Tab")
        page.locator("#conversation-list button").last.click()
        expect(page.locator(".user .content")).to_have_text("first")
        page.reload()
        expect(page.locator("#messages li")).to_have_count(0)
        assert errors == []


def kept(page: Page) -> list[list[str]]:
    """What was said in each conversation that the browser keeps, the oldest first."""
    texts = page.evaluate(
        """() => Object.keys(localStorage).filter((key) => key.startsWith("aipc.conversation."))
            .map((key) => JSON.parse(localStorage[key])).sort((a, b) => a.changed - b.changed)
            .map(({ messages }) => messages.map(({ content }) => content))"""
    )
    assert isinstance(texts, list)
    return texts


@needs_chromium
def test_two_tabs_show_each_other_s_turns(page: Page, served: Served) -> None:
    ask(page, "first")
    expect(answer_of(page)).to_have_text(ANSWER)
    other = page.context.new_page()
    other.goto(served.url)
    expect(other.locator(".user .content")).to_have_text("first")
    ask(page, "second")
    expect(other.locator(".user .content")).to_have_text(["first", "second"])
    expect(answer_of(other)).to_have_text(ANSWER)
    # What is being written in one is not taken away by the other.
    other.get_by_role("button", name="Edit").first.click()
    other.get_by_label("Your message").fill("another first")
    ask(page, "third")
    expect(page.locator(".assistant .figures")).to_have_count(3)
    other.get_by_role("button", name="Send again").click()
    expect(answer_of(other)).to_have_text(ANSWER)
    expect(other.locator("#conversation-list button")).to_have_text(["first (copy)", "first"])
    assert kept(page) == [
        ["first", ANSWER, "second", ANSWER, "third", ANSWER],
        ["another first", ANSWER],
    ]
    # What is deleted in one is gone in the other, and the rest stays.
    page.once("dialog", lambda dialog: dialog.accept())
    other.locator("#conversation-list button").last.click()
    page.get_by_role("button", name="Delete").click()
    expect(other.locator("#messages li")).to_have_count(0)
    assert kept(page) == [["another first", ANSWER]]


@needs_chromium
def test_answers_to_two_tabs_at_once_are_both_kept(page: Page, served: Served) -> None:
    ask(page, "first")
    expect(answer_of(page)).to_have_text(ANSWER)
    other = page.context.new_page()
    # The news of the other tab has not come yet: so early does it ask.
    other.add_init_script("addEventListener('storage', (event) => event.stopImmediatePropagation())")
    other.goto(served.url)
    gate = threading.Event()

    def gated(prompt: list[int], sampling: Sampling) -> Iterator[int]:
        gate.wait(30)
        return served.saying(ANSWER)(prompt, sampling)

    served.session.play = gated
    ask(page, "here")
    ask(other, "there")
    expect(answer_of(page)).to_have_attribute("aria-busy", "true")
    expect(answer_of(other)).to_have_attribute("aria-busy", "true")
    gate.set()
    for each in (page, other):
        expect(answer_of(each)).to_have_text(ANSWER)
        expect(answer_of(each)).to_have_attribute("aria-busy", "false")
    assert sorted(kept(page)) == [
        ["first", ANSWER, "here", ANSWER],
        ["first", ANSWER, "there", ANSWER],
    ]
