"""On which device and runtime a request is answered, and what clients are told of the choice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from aipc import prepare, verdicts
from aipc.errors import DeviceError
from aipc.inventory import Candidate, runtime_version
from aipc.measurements import kept
from aipc.plan import Plan
from aipc.runtimes.base import ONNXRUNTIME, OPENVINO, Device
from aipc.serve import places as places_module
from aipc.serve.failures import RefusedError
from aipc.serve.places import Places, Wish, wanted, warning
from aipc.serve.pool import Limits
from serving import ANSWER, CPU, CPU_TOO, MESSAGES, NPU, Served, serving
from test_serve_pool import until

GPU = Candidate(OPENVINO, Device("GPU.0", "an integrated GPU", "integrated GPU", address="0000:00:02.0"))
SECOND_GPU = Candidate(OPENVINO, Device("GPU.1", "another GPU", "integrated GPU", address="0000:03:00.0"))
BOTH_CPUS = Plan((CPU, CPU_TOO), named=False, notes=("ONNX Runtime is taken",))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A model that may run on a CPU, with either of two runtimes."""
    with serving(tmp_path) as served:
        served.places.plan = BOTH_CPUS
        yield served


def post(served: Served, route: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    body = {"model": "scripted", "messages": MESSAGES, **fields}
    return httpx.post(served.url + route, json=body, timeout=30)


def loaded(served: Served) -> list[tuple[str, str]]:
    return [entry.labels[1:] for entry in served.pool.entries.values() if entry.model is not None]


def test_a_request_names_its_device_and_runtime(served: Served) -> None:
    for fields, expected in (
        ({}, CPU),
        ({"device": "cpu", "runtime": "openvino"}, CPU_TOO),
        ({"runtime": "OpenVINO"}, CPU_TOO),
        ({"device": "CPU", "runtime": "onnxruntime"}, CPU),
        ({"device": "auto"}, CPU),
    ):
        assert post(served, **fields).json()["choices"][0]["message"]["content"] == ANSWER
        assert served.pool.entries["scripted", "CPU", expected.runtime.name].last_used == max(
            entry.last_used for entry in served.pool.entries.values()
        )
    # However they were asked for, each place has one worker.
    assert served.loaded_on == [CPU, CPU_TOO]


def test_every_api_takes_the_two_words(served: Served) -> None:
    fields = {"device": "CPU", "runtime": "openvino"}
    assert post(served, "/v1/completions", prompt="x", **fields).status_code == 200
    assert post(served, "/v1/responses", input="x", **fields).status_code == 200
    assert post(served, "/api/chat", stream=False, **fields).json()["message"]["content"] == ANSWER
    assert post(served, "/api/generate", prompt="x", stream=False, **fields).json()["response"] == ANSWER
    assert loaded(served) == [("CPU", "openvino")]
    client = served.client()
    answer = client.chat.completions.create(model="scripted", messages=MESSAGES, extra_body=fields)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == ANSWER
    schemas = httpx.get(f"{served.url}/openapi.json").json()["components"]["schemas"]
    for name in ("ChatRequest", "CompletionRequest", "ResponsesRequest", "GenerateRequest"):
        assert {"device", "runtime"} <= set(schemas[name]["properties"])


@pytest.mark.parametrize(
    "fields",
    [
        {"device": "NPU"},
        {"device": "GPU.7", "runtime": "openvino"},
        {"device": "toaster"},
        {"device": ""},
        {"device": "x" * 64},
        {"device": "CPU", "runtime": "torch"},
        {"runtime": "onnx"},
    ],
)
def test_a_place_that_is_not_here_is_refused_with_those_that_are(
    served: Served, fields: dict[str, str]
) -> None:
    for stream in (False, True):
        response = post(served, stream=stream, **fields)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "device_not_here")
        assert error["param"] == ("device" if "device" in fields else "runtime")
        assert '"CPU" with "onnxruntime"; "CPU" with "openvino"' in error["message"]
    assert served.loads == []
    said = post(served, "/api/chat", **fields).json()["error"]
    assert said.startswith("scripted cannot run here with")


def test_a_word_that_means_several_devices_names_none(served: Served) -> None:
    served.places.plan = Plan((GPU, SECOND_GPU, CPU), named=False)
    error = post(served, device="igpu").json()["error"]
    assert '"GPU.0" with "openvino"; "GPU.1" with "openvino"' in error["message"]
    assert post(served, device="GPU.1").status_code == 200
    assert post(served, device="gpu").status_code == 200
    assert served.loaded_on == [SECOND_GPU, GPU]


def test_without_a_device_the_next_best_is_taken_and_kept_while_it_is_loaded(served: Served) -> None:
    served.places.plan = Plan((NPU, CPU), named=False)

    def busy(place: Candidate) -> None:
        if place is NPU:
            raise DeviceError("the NPU is in use")

    served.refuse = busy
    assert post(served).status_code == 200
    assert served.loaded_on == [NPU, CPU]
    assert post(served).status_code == 200
    assert served.loaded_on == [NPU, CPU], "what failed is not tried again for each request"
    details = httpx.get(f"{served.url}/v1/models/scripted").json()
    assert details["auto"]["device"] == "CPU"
    (model,) = httpx.get(f"{served.url}/monitor", timeout=30).json()["models"]
    assert (model["device"], model["auto"]) == ("CPU", True)
    assert model["notes"] == ["NPU with OpenVINO GenAI is passed over: the NPU is in use"]
    # Who names the NPU is told why it does not answer, and gets no other.
    response = post(served, device="NPU")
    assert (response.status_code, response.json()["error"]["message"]) == (500, "the NPU is in use")
    assert loaded(served) == [("CPU", "onnxruntime")]


def test_a_place_has_a_queue_of_its_own(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(2**40, at_once=1, waiting=0)) as served:
        served.places.plan = BOTH_CPUS
        session, hold = served.session, threading.Event()

        def wait(*_: object) -> Iterator[int]:
            hold.wait(20)
            yield min(served.text.stop_ids)

        session.play = wait
        thread = threading.Thread(target=post, args=(served,))
        thread.start()
        until(lambda: served.entry().slots.running == 1)
        assert post(served, device="CPU", runtime="onnxruntime").status_code == 429
        assert post(served, device="CPU", runtime="openvino").status_code == 200
        hold.set()
        thread.join(20)


def test_the_memory_holds_over_all_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aipc.serve.pool._memory_bytes", lambda model: 4)
    with serving(tmp_path, limits=Limits(memory_bytes=7)) as served:
        served.places.plan = BOTH_CPUS
        for runtime in ("onnxruntime", "openvino"):
            assert post(served, runtime=runtime).status_code == 200
        assert loaded(served) == [("CPU", "openvino")]


def test_a_model_is_unloaded_everywhere_or_where_it_is_said(served: Served) -> None:
    def both() -> None:
        for runtime in ("onnxruntime", "openvino"):
            post(served, runtime=runtime)
        assert len(loaded(served)) == 2

    both()
    nothing: dict[str, Any] = {"messages": [], "keep_alive": 0}
    assert post(served, "/api/chat", runtime="openvino", **nothing).json()["done_reason"] == "unload"
    assert loaded(served) == [("CPU", "onnxruntime")]
    both()
    post(served, "/api/chat", **nothing)
    assert loaded(served) == []


def test_the_device_that_answers_is_told_by_its_id(served: Served) -> None:
    post(served, runtime="openvino")
    activity = httpx.get(f"{served.url}/monitor", timeout=30).json()
    (model,) = activity["models"]
    assert (model["device_id"], model["runtime"], model["auto"]) == ("CPU", "openvino", False)
    assert model["device_id"] in [device["id"] for device in activity["devices"]]
    served.places.plan = Plan((NPU, CPU_TOO), named=False)
    post(served, device="NPU")
    models = httpx.get(f"{served.url}/monitor", timeout=30).json()["models"]
    assert [one["device_id"] for one in models] == ["CPU", None], "this machine has no such NPU"


def test_a_model_card_says_where_it_may_run(served: Served) -> None:
    details = httpx.get(f"{served.url}/v1/models/scripted").json()
    assert [(place["device"], place["runtime"]) for place in details["places"]] == [
        ("CPU", "onnxruntime"),
        ("CPU", "openvino"),
    ]
    assert details["auto"] == details["places"][0]
    assert details["notes"] == ["ONNX Runtime is taken"]
    assert served.client().models.retrieve("scripted").id == "scripted"
    assert served.loads == []

    def broken(name: str, *, pinned: bool) -> Plan:
        raise DeviceError("no runtime reaches a device here", hint="install one")

    served.places.of = broken  # type: ignore[method-assign]
    details = httpx.get(f"{served.url}/v1/models/scripted").json()
    assert (details["places"], details["auto"]) == ([], None)
    assert details["notes"] == ["no runtime reaches a device here; install one"]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Candidate]:
    """This machine has these places, and an empty cache."""
    here = [CPU, CPU_TOO]
    monkeypatch.setenv("AIPC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "aipc.inventory.candidates",
        lambda infos: ([item for item in here if item.runtime in list(infos)], []),
    )
    return here


def test_the_server_s_own_words_leave_fewer_places(here: list[Candidate]) -> None:
    here.append(NPU)
    assert Places().of("demo", pinned=True).candidates == (NPU, CPU, CPU_TOO)
    plan = Places("CPU", "openvino").of("demo", pinned=True)
    assert list(wanted(plan, Wish("demo"))) == [CPU_TOO]
    assert list(wanted(plan, Wish("demo", "CPU"))) == [CPU_TOO]
    for wish in (Wish("demo", "NPU"), Wish("demo", None, "onnxruntime")):
        with pytest.raises(RefusedError, match="cannot run here"):
            wanted(plan, wish)


def test_a_pin_decides_where_no_device_is_named_and_hides_none(here: list[Candidate]) -> None:
    kept.pin("demo", kept.Pin("CPU", "openvino"))
    places = Places()
    assert places.of("demo", pinned=True).candidates == (CPU_TOO,)
    assert places.of("demo", pinned=False).candidates == (CPU, CPU_TOO)


def test_places_are_looked_for_anew_after_a_while(
    here: list[Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Places()
    now_s = 1000.0
    monkeypatch.setattr(places_module.time, "monotonic", lambda: now_s)
    assert NPU not in places.of("demo", pinned=True).candidates
    here.append(NPU)
    now_s += 59
    assert NPU not in places.of("demo", pinned=True).candidates
    now_s += 2
    assert NPU in places.of("demo", pinned=True).candidates


def test_what_verify_found_is_told_before_the_model_is_loaded(
    here: list[Candidate], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert warning("demo", CPU) is None, "it is not converted yet"
    ready = prepare.ready_model("demo", ONNXRUNTIME, CPU.device)
    assert prepare.ready_here("demo", ONNXRUNTIME, CPU.device) == ready
    assert prepare.ready_here("demo", OPENVINO, CPU.device) is None
    assert warning("demo", CPU) is None
    record = {"verdict": "broken", "reasons": ["it loses 3.2 nats", "more"]}
    verdicts.keep(record, ready.folder, CPU.device, runtime_version(ONNXRUNTIME))
    said = "aipc verify found this model broken on CPU: it loses 3.2 nats; more"
    assert warning("demo", CPU) == said
    monkeypatch.setattr("aipc.serve.cards.warning", lambda name, place: warning("demo", place))
    details = httpx.get(f"{served.url}/v1/models/scripted").json()
    assert [place["warning"] for place in details["places"]] == [said, None]
