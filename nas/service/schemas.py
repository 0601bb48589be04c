"""What goes over the wire; the service and its client share these."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

__all__ = [
    "SUBNETWORK",
    "ChoiceInfo",
    "CostInfo",
    "Form",
    "Front",
    "GenerateRequest",
    "Health",
    "Job",
    "Measured",
    "MetricInfo",
    "ModelInfo",
    "ModelSummary",
    "Models",
    "PredictRequest",
    "Prediction",
    "Progress",
    "SampleRequest",
    "SpaceInfo",
    "Subnetwork",
    "SubnetworkRequest",
    "Subnetworks",
]

SUBNETWORK = r"^[0-9a-f]{16}-[0-9a-z]{1,160}$"
Finite = Annotated[float, Field(allow_inf_nan=False)]
Value = StrictBool | StrictInt | Annotated[StrictFloat, Field(allow_inf_nan=False)] | StrictStr
Direction = Literal["minimize", "maximize"]
Form = Literal["safetensors", "pt2", "onnx", "onnx-lowbit"]
JobState = Literal["queued", "running", "done", "failed", "cancelled"]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Measured(BaseModel):
    """A value, its unit and which way is better."""

    value: float
    unit: str
    direction: Direction


class Subnetwork(BaseModel):
    """One subnetwork of a served supernet.

    Attributes:
        id: names it in every path; the same subnetwork of the same supernet has the same name everywhere.
        model: name of the supernet.
        revision: of the supernet.
        architecture: choice -> candidate.
        arch_id: digest of the architecture.
        measurements: what is known of it.
        origin: ``study`` (a search has found it), ``search`` (a quick search has), ``request`` (the client named it).
        weights: format -> link; ``onnx-lowbit`` only where a layer has fewer than 32 bits.
    """

    id: str
    model: str
    revision: str
    architecture: dict[str, bool | int | float | str]
    arch_id: str
    measurements: dict[str, Measured]
    origin: Literal["study", "search", "request"]
    weights: dict[str, str]


class SubnetworkRequest(_Request):
    """Which subnetworks are wanted: one by its architecture, or the best within limits.

    Attributes:
        architecture: choice -> candidate; the other fields then say nothing.
        limits: ``max_NAME`` or ``min_NAME`` of any cost or metric -> bound.
        objective: cost or metric to be best in; the supernet's headline by default.
        count: how many.
        bits: the most that weights may have, in layers whose bits can be chosen; see ``max_weight_bits``.
        seed: of the quick search.
        seconds: that a quick search may take where no study answers; above 1 it becomes a job.
    """

    architecture: dict[str, Value] | None = None
    limits: dict[str, Finite] = Field(default_factory=dict, max_length=32, examples=[{"max_params": 20000}])
    objective: str | None = None
    count: int = Field(default=1, ge=1, le=64)
    bits: int | None = Field(default=None, ge=1, le=64)
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    seconds: float = Field(default=1.0, gt=0, le=3600, allow_inf_nan=False)


class Subnetworks(BaseModel):
    """Subnetworks, the best first.

    Attributes:
        subnetworks: at most as many as asked.
        considered: trials or candidates that they were chosen from.
    """

    subnetworks: list[Subnetwork]
    considered: int


class Front(BaseModel):
    """The Pareto front of what searches of a supernet have evaluated."""

    objectives: list[str]
    subnetworks: list[Subnetwork]
    considered: int
    source: str


class ChoiceInfo(BaseModel):
    """One choice of a space; ``requires`` is ``[choice, value]`` where it is only present from that value on."""

    name: str
    candidates: list[bool | int | float | str]
    kind: str
    requires: list[str | int | float] | None


class SpaceInfo(BaseModel):
    """A search space."""

    class_path: str
    digest: str
    size: int
    choices: list[ChoiceInfo]


class CostInfo(BaseModel):
    """A cost and the range that the space reaches."""

    unit: str
    direction: Direction
    smallest: float
    largest: float


class MetricInfo(BaseModel):
    """A metric of the task."""

    unit: str
    direction: Direction


class ModelSummary(BaseModel):
    """A model that is served.

    Attributes:
        kind: ``supernet``, which hands out subnetworks, or ``hypernetwork``, which generates weights.
        fields: what ``/v1/generate`` may be asked for: field -> its values; none where weights are stored.
    """

    name: str
    kind: Literal["supernet", "hypernetwork"]
    address: str
    version: int | None
    revision: str
    fields: dict[str, str]


class Models(BaseModel):
    """The supernets that are served."""

    models: list[ModelSummary]


class ModelInfo(ModelSummary):
    """All about one supernet.

    Attributes:
        inputs: shape of each input, the batch first.
        headline: metric by which subnetworks are ranked.
        studied: trials that answers are chosen from.
        formats: of files; ``onnx-lowbit`` only where bits are quantised.
    """

    space: SpaceInfo
    source: dict[str, Any]
    task: dict[str, Any]
    costs: dict[str, CostInfo]
    metrics: dict[str, MetricInfo]
    headline: str
    inputs: list[list[int | str]]
    studied: int
    formats: list[str]


class PredictRequest(_Request):
    """Inputs for one subnetwork.

    Attributes:
        subnetwork: its id, or
        architecture: choice -> candidate.
        inputs: one nested list for each input of the network, the batch first.
    """

    subnetwork: str | None = Field(default=None, pattern=SUBNETWORK)
    architecture: dict[str, Value] | None = None
    inputs: list[Any] = Field(min_length=1, max_length=16)


class Prediction(BaseModel):
    """Outputs of one subnetwork: a nested list, the batch first, or a list or mapping of them as the network gives."""

    subnetwork: str
    outputs: Any


class GenerateRequest(_Request):
    """Which weights are wanted of a hypernetwork, or of a supernet whose weights are generated.

    Attributes:
        model: its name.
        condition: field -> a number, or a list of numbers, for a hypernetwork.
        size: choice -> candidate, for a supernet.
        seed: of generators that draw.
        evaluate: score the weights on the validation and test splits, where the data is known.
    """

    model: str = Field(max_length=200)
    condition: dict[str, Finite | list[Finite]] = Field(default_factory=dict, max_length=64)
    size: dict[str, Value] = Field(default_factory=dict, max_length=256)
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    evaluate: bool = False


class SampleRequest(_Request):
    """Which networks are wanted of a hypernetwork that samples for the examples in the body.

    Attributes:
        model: its name.
        examples: of each class that it sees; five when left out.
        count: networks to sample; with more than one, a fifth of the examples chooses the best, and it is a job.
        seed: of the draws.
    """

    model: str = Field(max_length=200)
    examples: int | None = Field(default=None, ge=1, le=1000)
    count: int = Field(default=1, ge=1, le=64)
    seed: int = Field(default=0, ge=0, lt=1 << 31)


class Progress(BaseModel):
    """How far a job is."""

    tried: int = 0
    seconds: float = 0.0


class Job(BaseModel):
    """A search, or a draw of several networks, that takes longer than a request should.

    Attributes:
        id: names it.
        model: that is searched or drawn from.
        revision: of the model.
        state: of ``queued``, ``running``, ``done``, ``failed`` and ``cancelled``.
        request: what was asked.
        progress: so far.
        created: seconds since the epoch.
        finished: the same, once it has ended.
        message: why it failed.
        result: of a search, once it is done.
        weights: link to those of a draw, once it is done.
    """

    id: str
    model: str
    revision: str
    state: JobState
    request: SubnetworkRequest | SampleRequest
    progress: Progress = Progress()
    created: float
    finished: float | None = None
    message: str | None = None
    result: Subnetworks | None = None
    weights: str | None = None


class Health(BaseModel):
    """Whether the service can answer, and which supernets it has loaded."""

    status: Literal["alive", "ready", "loading", "failed"]
    models: dict[str, str] = Field(default_factory=dict)
