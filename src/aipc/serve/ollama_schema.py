"""The words of Ollama's API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from aipc.serve.openai_schema import TEXT_ONLY, AnyObject, Asked, Stop, Tool, Words, refuses

NoImages = Annotated[list[Any], Field(max_length=0), refuses(TEXT_ONLY)]
NO_GAPS = "no Phi model was trained to fill a gap"
KeepAlive = str | float


class Options(Words):
    """How an answer is made; options of Ollama that are not named here have no effect."""

    num_predict: Annotated[int, Field(ge=-2, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | None = None


class OllamaFunction(Words):
    """A function and its arguments."""

    name: str
    arguments: AnyObject = Field(default_factory=dict)


class OllamaCall(Words):
    """A call that the model made."""

    function: OllamaFunction


class OllamaMessage(Words):
    """A turn of the conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: NoImages | None = None
    tool_calls: list[OllamaCall] | None = None


class Asking(Asked):
    """What chat and generate have in common. An answer is streamed unless `stream` is false."""

    stream: bool | None = None
    format: AnyObject | Literal["", "json"] | None = None
    options: Options | None = None
    keep_alive: KeepAlive | None = None


class OllamaChatRequest(Asking):
    """The body of /api/chat. Without messages the model is loaded, or with keep_alive 0 unloaded."""

    messages: list[OllamaMessage] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None


class GenerateRequest(Asking):
    """The body of /api/generate. Without a prompt the model is loaded, or with keep_alive 0 unloaded."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: Annotated[str, Field(max_length=0), refuses(NO_GAPS)] | None = None
    images: NoImages | None = None


class ShowRequest(Words):
    """The body of /api/show. `name` is the older word for `model`."""

    model: str | None = None
    name: str | None = None


class Details(BaseModel):
    """What kind of model it is."""

    parent_model: str = ""
    format: str
    family: Literal["phi3"] = "phi3"
    families: list[str] = ["phi3"]
    parameter_size: str = ""
    quantization_level: str = ""


class TagModel(BaseModel):
    """A model that is served."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Tags(BaseModel):
    """The answer of /api/tags."""

    models: list[TagModel]


class RunningModel(BaseModel):
    """A model that is loaded. `size` is the memory of its process."""

    name: str
    model: str
    size: int
    size_vram: int
    digest: str
    details: Details
    expires_at: str
    context_length: int


class Running(BaseModel):
    """The answer of /api/ps."""

    models: list[RunningModel]


class Shown(BaseModel):
    """The answer of /api/show."""

    modelfile: str = ""
    parameters: str = ""
    template: str = ""
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class Version(BaseModel):
    """The answer of /api/version."""

    version: str


class Ending(BaseModel):
    """The figures of an answer, on its last line. Durations are in nanoseconds."""

    model: str
    created_at: str
    done: bool
    done_reason: str | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class ChatReply(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    tool_calls: list[OllamaCall] | None = None


class ChatLine(Ending):
    """The answer of /api/chat, or a line of it."""

    message: ChatReply


class GenerateLine(Ending):
    """The answer of /api/generate, or a line of it."""

    response: str
