"""The words of OpenAI's API, as pydantic checks them and the OpenAPI document describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from aipc.serve.places import Wish
from aipc.types import refuse_deep

MAX_CHOICES = 8
MAX_STOPS = 16

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Temperature = Annotated[float, Field(ge=0, le=100)]
TopP = Annotated[float, Field(gt=0, le=1)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]
Stop = StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


def refuses(why: str) -> BeforeValidator:
    """Says in words that a field must be empty, 0 or absent: what it asks for cannot be done here."""

    def check(value: object) -> object:
        if value and isinstance(value, (int, float, str, list, dict)):
            raise ValueError(why)
        return value

    return BeforeValidator(check)


# Values that say "leave it as it is"; any other would have to change the answer, and does not here.
Zero = Annotated[
    float, Field(ge=0, le=0), refuses("only 0 is possible; repetition_penalty is what there is instead")
]
TEXT_ONLY = "the models read text: no images, sound or files"


def _text_alone(kind: object) -> object:
    if isinstance(kind, str) and any(word in kind for word in ("image", "audio", "file", "video")):
        raise ValueError(TEXT_ONLY)
    return kind


# The `type` of a part of a message is checked by this before anything else.
OF_TEXT = BeforeValidator(_text_alone)


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    refuse_deep(value, "object")
    return value


AnyObject = Annotated[dict[str, Any], AfterValidator(_shallow)]
NoMap = Annotated[dict[str, Any], Field(max_length=0), refuses("tokens cannot be made likelier or less so")]


class Words(BaseModel):
    """What a client sends: JSON's own types only; what is not named here has no effect."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Asked(Words):
    """Which model, and on what.

    `device` is a word such as "auto", "NPU", "GPU.1" or "CPU", `runtime` is "openvino" or "onnxruntime";
    both are aipc's own. Without them the server chooses. /v1/models/ID says what there is.
    """

    model: str
    device: Annotated[str, Field(max_length=64)] | None = None
    runtime: Annotated[str, Field(max_length=64)] | None = None

    @property
    def wish(self) -> Wish:
        """What to look for."""
        return Wish(self.model, self.device, self.runtime)


class TextPart(Words):
    """A part of a message. Images and sound are not among them."""

    type: Annotated[Literal["text"], OF_TEXT]
    text: str


class FunctionCalled(Words):
    """A function and its arguments, as JSON text."""

    name: str
    arguments: str


class ToolCalled(Words):
    """A call that the model made earlier."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCalled


class ChatMessage(Words):
    """A turn of the conversation. `developer` is `system` by its newer name."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCalled] | None = None
    tool_call_id: str | None = None


class Function(Words):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: FunctionName
    description: str | None = None
    parameters: AnyObject | None = None


class Tool(Words):
    """OpenAI's wrapping of a function."""

    type: Literal["function"]
    function: Function


class FunctionNamed(Words):
    """The name of a function."""

    name: str


class ToolNamed(Words):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionNamed


class ResponseFormat(Words):
    """What the answer must look like. `regex` is aipc's own."""

    type: Literal["text", "json_object", "json_schema", "regex"]
    json_schema: AnyObject | None = None
    pattern: str | None = None


class StreamOptions(Words):
    """What a stream tells besides the answer."""

    include_usage: bool | None = None


class Generation(Asked):
    """What chat and text completions have in common."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    user: str | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: NoMap | None = None

    def options(self) -> dict[str, Any]:
        """Keywords for Model.stream; what was not said is left to it."""
        said_values = {
            "max_new_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "seed": self.seed,
            "stop": self.stop or None,
        }
        return {name: value for name, value in said_values.items() if value is not None}

    @property
    def include_usage(self) -> bool:
        """Whether the last event of a stream tells how many tokens there were."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Generation):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolNamed | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The functions that the model is told of."""
        if self.tool_choice == "none":
            return []
        return [tool.function.model_dump(exclude_none=True) for tool in self.tools or ()]


class CompletionRequest(Generation):
    """The body of /v1/completions. A prompt is text as it stands, or token ids."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[int], Field(min_length=1)]], Field(min_length=1, max_length=MAX_CHOICES)
        ]
    )
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    suffix: str | None = None


class PromptTokens(BaseModel):
    """Of the prompt's tokens: those that earlier requests had left computed."""

    cached_tokens: int


class Usage(BaseModel):
    """How many tokens there were; `prompt_tokens_details` is null where the runtime does not say."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens | None = None


class TopLogprob(BaseModel):
    """How likely a token was. `bytes` are UTF-8, which several tokens may share for one character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(TopLogprob):
    """A token of the answer, and the likeliest in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """The tokens of an answer."""

    content: list[TokenLogprobs]
    refusal: None = None


class TextLogprobs(BaseModel):
    """The tokens of a text, list by list; `top_logprobs` has the token itself among the likeliest."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class ChatAnswer(BaseModel):
    """The message of an answer; `content` is null where it is calls only."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCalled] | None = None


class ChatChoice(BaseModel):
    """One of the answers."""

    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(BaseModel):
    """One of the answers."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class TextCompletion(BaseModel):
    """The answer of /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ModelCard(BaseModel):
    """A model that may be asked."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["aipc"] = "aipc"


class PlaceCard(BaseModel):
    """Where a model may run. `device` and `runtime` are the words to ask for it with.

    kind      "NPU", "discrete GPU", "integrated GPU" or "CPU"
    warning   what `aipc verify` found wrong with the model there, or null
    """

    device: str
    runtime: str
    device_name: str
    kind: str
    runtime_name: str
    warning: str | None


class ModelDetails(ModelCard):
    """A model and where it may run; all but the card is aipc's own.

    places   that may be asked for, best first
    auto     the one that is taken where none is asked for; null where there is none
    notes    why, in sentences; or why there is no place
    """

    places: list[PlaceCard]
    auto: PlaceCard | None
    notes: list[str]


class ModelList(BaseModel):
    """The answer of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
