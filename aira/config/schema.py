"""The configuration of each command: the keys of conf/ with their types, ranges and choices.

The comments in conf/ say what a key is for; the defaults are there, too.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from aira.config.types import (
    Amount,
    Architecture,
    Below1,
    Betas,
    Between,
    ClassWeights,
    Columns,
    Country,
    Devices,
    Fact,
    Finite,
    Labels,
    Length,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Probability,
    Range,
    Rule,
    Seed,
    Text,
)

Mode = Literal["min", "max"]
HighScore = Literal["harmless", "toxic"]


class Section(BaseModel):
    """A group of keys: nothing is converted, and a key that is not declared is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, populate_by_name=True)


class Open(Section):
    """A group in which the user's own files may have further keys."""

    model_config = ConfigDict(extra="allow")


# The parts of a run


class Language(Section):
    """conf/language."""

    code: Annotated[Text, Fact("language=<code> chooses it")]
    questions: list[Text]


class Lora(Section):
    """`model.lora`."""

    r: NonNegativeInt
    alpha: Positive
    dropout: Below1
    target_modules: Text | list[Text]
    use_dora: bool = False
    use_rslora: bool = False


class Model(Section):
    """conf/model."""

    name: Annotated[Text, Fact("model=<name> chooses a model, and hydra.run.dir=<folder> names a run's folder")]
    architecture: Annotated[
        Literal["causal", "encoder", "auto"],
        Fact("model= chooses a model, such as bert-base for an encoder; model.path= is its weights"),
    ]
    checkpoints: dict[str, Text]
    path: Text
    revision: Text | None
    config: Architecture
    trust_remote_code: bool
    attn_implementation: Literal["trees", "sdpa"]
    template: Literal["aira", "native"]
    prompt_bos: bool
    dropout: Below1 | None
    gradient_checkpointing: bool
    compile: bool
    load_in_4bit: bool
    lora: Lora
    # optional: other models take these from the method or the data
    lr: dict[str, NonNegative] = Field(default={})
    epochs: dict[str, PositiveInt] = Field(default={})
    exact_match: dict[str, NonNegativeInt] = Field(default={})
    max_length: Length | None = None


class Mixed(Section):
    """An entry of `data.mix`: a source, and how much of it an epoch has. Its keys are as those of conf/data."""

    path: Text
    weight: Positive = 1.0
    split: Text = "train"
    validation_split: Text = "validation"
    revision: Text | None = None
    max_examples: PositiveInt | None = None
    columns: Columns | None = None


class Data(Section):
    """conf/data."""

    name: Annotated[Text, Fact("data=<name> chooses it; data.path= takes a file, a folder or a hub id")]
    sources: dict[str, dict[str, dict[str, Any]]]
    path: Text
    split: Text
    revision: Text | None
    validation_split: Text
    validation_fraction: Between
    columns: Columns | None
    labels: Labels | None
    exclude: list[Text]
    max_examples: PositiveInt | None
    max_length: Length
    batch_size: PositiveInt
    tokens_per_row: PositiveInt
    num_workers: NonNegativeInt
    num_proc: PositiveInt
    consecutive_turns: Literal["keep", "join", "refuse"]
    mix: Annotated[
        list[Mixed],
        Rule(f"a list of mappings with the keys {', '.join(Mixed.model_fields)}", "'[{path: a.jsonl, weight: 2}]'"),
    ]
    mix_by: Literal["passes", "examples", "tokens"]


class Method(Open):
    """The keys of every method; further keys are arguments of its module, by name."""

    name: Annotated[Text, Fact("method=<name> chooses a method")]
    module: Text
    datamodule: Text
    kind: Annotated[Text, Fact("method= and, of method=toxicity, method.objective= choose the kind of data")]
    architectures: Annotated[
        list[Literal["causal", "encoder"]], Fact("model= chooses a model, and with it the architecture")
    ]
    head: Annotated[Literal["lm", "score"], Fact("method= chooses what the model computes")]
    label: Annotated[Text | None, Fact("method= chooses what a score means")]
    lr: NonNegative
    monitor: Text
    mode: Mode
    compare_by: Text
    compare_mode: Mode
    summary: list[Text]
    next: Text

    def arguments(self) -> dict[str, Any]:
        """The keys that are this method's own, as arguments of its module."""
        return {key: value for key, value in self if key not in Method.model_fields}


class SFT(Method):
    """conf/method/sft.yaml."""

    loss_on: Literal["completion", "all"]
    neftune_alpha: NonNegative

    def arguments(self) -> dict[str, Any]:
        """Without `loss_on`: which tokens are in the loss is decided when the data is tokenized."""
        return {key: value for key, value in super().arguments().items() if key != "loss_on"}


PairLoss = Literal[
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "apo_zero", "apo_down", "simpo", "orpo"
]
Smoothing = Annotated[float, Range(0, 0.5, (0.5,))]


class DPO(Method):
    """conf/method/dpo.yaml."""

    loss: PairLoss
    beta: Positive
    label_smoothing: Smoothing
    gamma: NonNegative
    sft_weight: NonNegative
    reference: Text | None
    cache_dir: Text


class Reward(Method):
    """conf/method/reward.yaml."""

    label_smoothing: Smoothing
    center_rewards_coefficient: NonNegative


class Toxicity(Method):
    """conf/method/toxicity.yaml."""

    objective: Literal["classification", "pairwise"]
    class_weights: ClassWeights
    threshold_by: Literal["accuracy", "balanced_accuracy", "f1"]
    kinds: Annotated[dict[str, Text], Fact("method.objective= chooses the kind of data")]

    def arguments(self) -> dict[str, Any]:
        """Without `kinds`, which only chooses the kind of data."""
        return {key: value for key, value in super().arguments().items() if key != "kinds"}


METHODS: dict[str, type[Method]] = {"sft": SFT, "dpo": DPO, "reward": Reward, "toxicity": Toxicity}


def _method(values: Any) -> str:
    """By the name, and of a file of the user's own by the module, whose arguments are the same."""
    name, module = (values.get(key) if isinstance(values, dict) else getattr(values, key) for key in ("name", "module"))
    built_in = str(module).rpartition(".")[2].lower() if str(module).startswith("aira.methods.") else ""
    return name if name in METHODS else built_in if built_in in METHODS else "own"


AnyMethod = Annotated[
    Annotated[SFT, Tag("sft")]
    | Annotated[DPO, Tag("dpo")]
    | Annotated[Reward, Tag("reward")]
    | Annotated[Toxicity, Tag("toxicity")]
    | Annotated[Method, Tag("own")],
    Discriminator(_method),
]

Target = Annotated[Text, Field(alias="_target_"), Fact("the option of its group chooses it")]


class Optimizer(Section):
    """`optimizer` in conf/train.yaml."""

    name: Literal["adamw", "adamw-8bit", "adafactor", "muon"]
    lr: NonNegative
    weight_decay: NonNegative
    betas: Betas
    eps: NonNegative
    momentum: Below1
    max_grad_norm: NonNegative


class Schedule(Section):
    """`schedule` in conf/train.yaml."""

    name: Literal["cosine", "linear", "constant", "cosine_with_min_lr", "polynomial", "inverse_sqrt", "wsd"]
    warmup: Amount
    min_lr: NonNegative
    decay: Amount
    power: Positive


class Strategy(Open):
    """One of Lightning's strategies, with its arguments."""

    target: Target
    save_distributed_checkpoint: Annotated[bool, Fact("a checkpoint is one file, whatever the trainer")] = False


class Trainer(Open):
    """Arguments of Lightning's Trainer; a user's own file may have further ones."""

    target: Target
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"]
    devices: Devices
    num_nodes: PositiveInt
    strategy: Text | Strategy
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true"]
    max_epochs: PositiveInt
    max_steps: Annotated[int, Range(-1, without=(0,), whole_above=-2)]
    val_check_interval: Annotated[int | float, Range(0, without=(0,), whole_above=1)]
    limit_val_batches: Amount
    log_every_n_steps: PositiveInt
    enable_progress_bar: bool

    @property
    def sharded(self) -> bool:
        """Whether weights are sharded, as by conf/trainer/fsdp.yaml."""
        return isinstance(self.strategy, Strategy)


class Part(Open):
    """A callback or a logger: a class, or a function that builds one, and its arguments."""

    target: Target


class Samples(Part):
    """`aira.callbacks.samples`."""

    questions: list[Text]
    every_n_steps: PositiveInt
    max_new_tokens: PositiveInt
    exact_match: NonNegativeInt


class Scores(Part):
    """`aira.callbacks.scores`."""

    count: PositiveInt


class Emissions(Part):
    """`aira.callbacks.emissions`."""

    country: Country


class Checkpoint(Part):
    """`aira.callbacks.checkpoint`."""

    every_n_train_steps: PositiveInt
    monitor: Text
    mode: Mode


class EarlyStopping(Part):
    """conf/callbacks/early_stopping.yaml."""

    monitor: Text
    mode: Mode
    patience: PositiveInt
    min_delta: NonNegative


class Averaging(Part):
    """`aira.callbacks.averaging`."""

    decay: Below1 | None
    start: Amount


class Callbacks(BaseModel):
    """The callbacks of conf/callbacks, each of which is optional, and the user's own."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Part]

    samples: Samples | None = None
    scores: Scores | None = None
    throughput: Part | None = None
    emissions: Emissions | None = None
    checkpoint: Checkpoint | None = None
    early_stopping: EarlyStopping | None = None
    ema: Averaging | None = None
    swa: Averaging | None = None

    def parts(self) -> dict[str, dict[str, Any]]:
        """The settings of each; checkpoints come last, so that they include the state of the others."""
        parts = _settings_of(self)
        return parts | {"checkpoint": parts.pop("checkpoint")} if "checkpoint" in parts else parts


class Wandb(Part):
    """conf/logger/wandb.yaml."""

    project: Text
    group: Text | None
    tags: list[Text]
    upload_export: bool


class Loggers(BaseModel):
    """The loggers of conf/logger, and the user's own."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Part]

    wandb: Wandb | None = None

    def parts(self) -> dict[str, dict[str, Any]]:
        """The settings of each."""
        return _settings_of(self)


def _settings_of(parts: BaseModel) -> dict[str, dict[str, Any]]:
    return {key: part.model_dump(by_alias=True) for key, part in parts if part}


Space = dict[str, Annotated[Text, Rule("choice(…), interval(…) or tag(log, interval(…))", "'choice(8,16)'")]]


class Sweep(Section):
    """A hyperparameter search."""

    target: Target
    metric: Text
    mode: Mode
    space: Space
    spaces: dict[str, Space]
    trials: PositiveInt = 1  # this and the following are of one of the two searches, and are passed on if they are set
    prune: bool = False
    project: Text = "aira"
    search: Literal["bayes", "random", "grid"] = "bayes"


class NoSweep(Section):
    """`sweep=none`."""


# The commands


class Settings(Section):
    """The keys of every command."""

    debug: bool


class Train(Settings):
    """conf/train.yaml."""

    language: Language
    data: Data
    model: Model
    method: AnyMethod
    trainer: Trainer
    callbacks: Callbacks
    logger: Loggers
    sweep: Annotated[
        Annotated[Sweep, Tag("sweep")] | Annotated[NoSweep, Tag("none")],
        Discriminator(lambda value: "sweep" if value else "none"),
    ]
    optimizer: Optimizer
    schedule: Schedule
    seed: Seed
    ckpt_path: Text | None
    export: Literal["last", "best"]
    output_dir: Text
    overwrite: bool
    cache_dir: Text


class ModelLocation(Section):
    """The path of a model."""

    path: Text
    revision: Text | None
    trust_remote_code: bool


def _model(values: Any) -> str:
    named = "name" in values if isinstance(values, dict) else isinstance(values, Model)
    return "named" if named else "located"


class Suite(Section):
    """conf/eval."""

    name: Annotated[Text, Fact("eval=<name> chooses a suite")]
    tasks: list[Text]
    num_fewshot: dict[str, NonNegativeInt]
    not_averaged: list[Text]
    data_dir: Text | None
    limit: PositiveInt | None
    chat_template: bool
    max_length: Length | None
    tokens_per_row: PositiveInt
    precision: Literal["32-true", "bf16-mixed"]
    high_score: HighScore | None
    published: list[Text]


class Evaluate(Settings):
    """conf/evaluate.yaml."""

    language: Language
    model: Annotated[Annotated[Model, Tag("named")] | Annotated[ModelLocation, Tag("located")], Discriminator(_model)]
    models: list[Text]
    compare: list[Text]
    eval: Suite
    logger: Loggers
    device: Text
    seed: Seed
    country: Country
    output_dir: Text
    overwrite: bool
    cache_dir: Text


class Guard(Section):
    """`guard` of a chat."""

    threshold: Between | None
    threshold_logit: Finite | None
    reads: Literal["answer", "exchange"]
    high_score: HighScore | None


class Answering(Settings):
    """The keys that the chat and rejection sampling share."""

    language: Language
    chat_model: Text
    reward_model: Text
    toxicity_model: Text
    n: PositiveInt
    temperature: NonNegative
    top_k: NonNegativeInt
    top_p: Probability
    repetition_penalty: Annotated[float, Range(0.01, 100)]
    max_new_tokens: PositiveInt
    guard: Guard
    seed: Seed
    device: Text
    tokens_per_row: PositiveInt
    output_dir: Text


class Demo(Section):
    """`demo` in conf/chat.yaml."""

    host: Text
    hosts: list[Text] | None
    port: Annotated[int, Range(0, 65535, whole_above=-1)] | None
    max_characters: PositiveInt
    max_waiting: PositiveInt


class SearchData(Section):
    """`data` in conf/chat.yaml."""

    path: Text
    split: Text
    columns: Columns | None


class Chat(Answering):
    """conf/chat.yaml."""

    default_message: Text | None
    prompt: str | None
    input: Text | None
    output: Text | None
    demo: Demo
    data: SearchData


class RejectionSampling(Answering):
    """conf/rejection_sampling.yaml."""

    prompts: Text
    split: Text
    column: Text
    max_prompts: PositiveInt | None
    output: Text
    min_margin: NonNegative
    prompts_per_part: PositiveInt
    cache_dir: Text


class Stage(Section):
    """A stage of a pipeline."""

    command: Text
    minutes: NonNegative | None
    overrides: list[Text]
    models: list[Text] = Field(default=[])


class Stages(Open):
    """A file of conf/pipeline; its overrides may refer to further keys of it."""

    name: Text
    stages: dict[str, Stage]


class Pipeline(Settings):
    """conf/pipeline.yaml."""

    language: Language
    pipeline: Stages
    output: Text
    skip: list[Text]
    dry_run: bool


class Push(Settings):
    """conf/push.yaml."""

    run: Text
    repo: Text
    private: bool
    push: bool


class Report(Settings):
    """conf/report.yaml."""

    runs: Text | list[Text]
    output: Text | None
    title: Text | None
    wandb: bool
    entity: Text | None
    project: Text


COMMANDS: dict[str, type[Settings]] = {
    "train": Train,
    "evaluate": Evaluate,
    "chat": Chat,
    "pipeline": Pipeline,
    "push": Push,
    "report": Report,
    "rejection_sampling": RejectionSampling,
}
"""The configurations of the commands, by the names of their files in conf/."""
