"""A server in this process on a real port, in front of models whose answers a test writes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import openai

from aipc.inventory import Candidate
from aipc.model import Model
from aipc.plan import Plan
from aipc.runtimes.base import ONNXRUNTIME, OPENVINO, Device
from aipc.serve.app import create_app
from aipc.serve.guard import Policy
from aipc.serve.pool import Entry, Limits, Pool
from aipc.serve.server import Server, listen
from aipc.text import Text
from aipc.types import Prefill, Sampling, ScoredToken, TokenStream
from tokenizers_for_tests import write_gpt_style, write_llama_style

ANSWER = "The neural processing unit runs the model."
MESSAGES = [{"role": "user", "content": "What is an NPU?"}]
# Phi-4-mini's place for tools is the system message.
TOOLS_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] }}"
    "{% if 'tools' in m and m['tools'] is not none %}{{ '<tools>' + m['tools'] + '</tools>' }}{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)

Play = Callable[[list[int], Sampling], Iterator[int]]


# Where scripted models run, unless a test knows better.
CPU = Candidate(ONNXRUNTIME, Device("CPU", "a processor", "CPU"))
CPU_TOO = Candidate(OPENVINO, Device("CPU", "a processor", "CPU"))
NPU = Candidate(OPENVINO, Device("NPU", "a neural processor", "NPU", address="0000:00:0b.0"))


class ScriptedPlaces:
    """Where the models of a test may run.

    plan     for all of them
    asked    how often it was looked up
    """

    def __init__(self) -> None:
        self.plan = Plan((CPU,), named=False)
        self.asked = 0

    def of(self, name: str, *, pinned: bool) -> Plan:
        self.asked += 1
        return self.plan


class ScriptedSession:
    """Plays a script for each request, and remembers what was asked.

    play     the script: gives ids, waits or raises
    cached   how many tokens of a prompt need not be computed, for all that is known
    """

    precision, context_length, notes = "int4", 512, ()

    def __init__(self, play: Play, device: str = "CPU") -> None:
        self.play = play
        self.device = device
        self.prompts: list[list[int]] = []
        self.samplings: list[Sampling] = []
        self.ended = 0
        self.closed = False
        self.cached: int | None = None

    def begin(self, play: Play) -> None:
        """Play another script, and forget what was asked."""
        self.play = play
        self.prompts.clear()
        self.samplings.clear()
        self.ended = 0

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> TokenStream:
        cancelled = threading.Event()
        self.prompts.append(list(prompt))
        self.samplings.append(sampling)
        ids = self._ids(list(prompt), sampling, cancelled)
        return TokenStream(ids, cancelled, Prefill(self.cached))

    def _ids(
        self, prompt: list[int], sampling: Sampling, cancelled: threading.Event
    ) -> Generator[int, None, None]:
        try:
            for count, token in enumerate(self.play(prompt, sampling)):
                if count == sampling.max_new_tokens or cancelled.is_set():
                    return
                yield token
        finally:
            self.ended += 1

    def close(self) -> None:
        self.closed = True


class Served:
    """A server that runs, its models and clients for it.

    sessions    of each model in the usual place; `placed` has those in all places
    before_load called before a model is loaded; it may wait
    refuse      called before a model is loaded in a place; it may raise
    notes       what a model says when it was loaded
    """

    def __init__(self, folder: Path, names: Sequence[str] = ("scripted",)) -> None:
        self.text = Text.load(write_llama_style(folder / "plain"))
        tools = write_gpt_style(folder / "tools", chat_template=TOOLS_TEMPLATE)
        self.tools_text = Text.load(tools)
        self.names = names
        self.places = ScriptedPlaces()
        self.sessions: dict[str, ScriptedSession] = {}
        self.placed: dict[tuple[str, str, str], ScriptedSession] = {}
        self.loads: list[str] = []
        self.loaded_on: list[Candidate] = []
        self.clients: list[openai.OpenAI] = []
        self.expected: dict[str, int] = {}
        self.before_load: Callable[[str], None] = lambda name: None
        self.refuse: Callable[[Candidate], None] = lambda place: None
        self.notes: tuple[str, ...] = ()
        self.port = 0
        self.pool: Pool

    def load(self, name: str, place: Candidate) -> Model:
        self.loads.append(name)
        self.loaded_on.append(place)
        self.before_load(name)
        self.refuse(place)
        text = self.tools_text if name == "tools" else self.text
        session = ScriptedSession(self.saying(ANSWER, text), place.device.word)
        if place is CPU:
            self.sessions[name] = session
        self.placed[name, place.device.word, place.runtime.name] = session
        return Model(
            name,
            text,
            session,
            runtime="a script",
            address=place.device.address,
            notes=self.notes,
        )

    def scoring(self, words: str) -> Play:
        """A script that also says, to those who ask, that its tokens are the likeliest, and of 30 others."""

        def play(prompt: list[int], sampling: Sampling) -> Iterator[int]:
            ids = [*self.text.encode(words), min(self.text.stop_ids)]
            for place, token in enumerate(ids):
                if sampling.logprobs is None:
                    yield token
                else:
                    others = [
                        (token, -float(place)),
                        *((one, -50.0 - one) for one in range(300, 330) if one != token),
                    ]
                    yield ScoredToken(token, -float(place), others[: sampling.logprobs])

        return play

    def saying(self, words: str, text: Text | None = None) -> Play:
        """A script that says this and ends."""
        text = text or self.text
        return lambda prompt, sampling: iter([*text.encode(words), min(text.stop_ids)])

    @property
    def session(self) -> ScriptedSession:
        """The session of the first model, loaded now if it was not."""
        if self.names[0] not in self.sessions:
            self.client().chat.completions.create(model=self.names[0], messages=MESSAGES, max_tokens=1)
            self.sessions[self.names[0]].samplings.clear()
            self.sessions[self.names[0]].prompts.clear()
            self.sessions[self.names[0]].ended = 0
        return self.sessions[self.names[0]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def entry(self, name: str = "scripted", place: Candidate = CPU) -> Entry:
        """A model in a place, which was asked for before."""
        return self.pool.entries[name, place.device.word, place.runtime.name]

    def client(self, key: str = "none") -> openai.OpenAI:
        """OpenAI's client, which takes every error for what it is."""
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)
        self.clients.append(client)
        return client


@contextmanager
def serving(
    folder: Path,
    names: Sequence[str] = ("scripted",),
    policy: Policy | None = None,
    limits: Limits | None = None,
    drain_s: float = 5.0,
) -> Iterator[Served]:
    """A server from here to the end of the `with`."""
    served = Served(folder, names)
    served.pool = Pool(
        names,
        served.places,  # type: ignore[arg-type]
        served.load,
        lambda name: served.expected.get(name, 0),
        limits or Limits(memory_bytes=2**40),
    )
    socket = listen("127.0.0.1", 0)
    served.port = socket.getsockname()[1]
    server = Server(create_app(served.pool, policy or Policy()), served.pool, drain_s=drain_s, verbose=False)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[socket])))
    thread.start()
    try:
        yield served
    finally:
        server.should_exit = True
        thread.join(30)
        socket.close()
        for client in served.clients:
            client.close()
        assert not thread.is_alive()
