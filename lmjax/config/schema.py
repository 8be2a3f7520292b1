"""The config: one dataclass per room, the unit and meaning beside every field.

Values reach these fields from a file in `configs/`, then from the command line
(`--config.section.field=value`). After `checks.check` a config is read-only.
Durations are strings with a unit: "500 steps", "1 epochs", "10M tokens",
"10M words", "5%" (of the run), or of the clock, "170 minutes"; "0" means never. Where
no value is meant, a field
holds 0, an empty string or an enum member: config flags can't be set to None.
"""

import dataclasses

from lmjax.config.choices import (
    AcquisitionEdition,
    Architecture,
    AttentionKind,
    Backbone,
    DataFormat,
    DocumentUnit,
    Estimator,
    ExportDtype,
    FirstInput,
    LayerLayout,
    LearningRateKind,
    LongItems,
    LossWeighting,
    MLPKind,
    NoiseRemoval,
    NormKind,
    OnExtend,
    OptimizerKind,
    Packing,
    Parameterization,
    PositionKind,
    Precision,
    Push,
    Remasking,
    Remat,
    SamplerKind,
    ScheduleKind,
    SentencePieceModel,
    Ties,
    TimeDensity,
    TimeSampling,
    TokenDtype,
    TokenizerKind,
    ZeroShotBackend,
)

SAMPLE_CORPUS = "sample"  # in data.train: the built-in corpus, rather than a file


@dataclasses.dataclass
class TokenizerConfig:
    kind: TokenizerKind = TokenizerKind.SENTENCEPIECE
    path: str = ""  # file, folder or name, see TokenizerKind; empty trains one
    vocab_size: int = 16384  # ids of a trained tokenizer, the special ones included
    model: SentencePieceModel = SentencePieceModel.BPE  # of a trained SentencePiece
    nfkc: bool = False  # whether a trained Hugging Face tokenizer normalises text
    min_frequency: int = 2  # of a merge of a trained Hugging Face tokenizer
    reserved: int = 11  # further special ids of a trained Hugging Face tokenizer


@dataclasses.dataclass
class DataConfig:
    train: tuple[str, ...] = ()  # files, folders, globs, "name=path" or
    # "hf://owner/dataset?revision=..&split=..", or SAMPLE_CORPUS; empty: see
    # default_folder
    valid: tuple[str, ...] = ()  # the same; empty holds out documents of train
    default_folder: str = "data/babylm"  # read when train is empty; if it is missing
    # too, the run falls back to the built-in sample corpus
    sample_words: int = 300_000  # whitespace words of the built-in sample corpus
    format: DataFormat = DataFormat.AUTO
    documents: DocumentUnit = DocumentUnit.AUTO
    text_field: str = "text"  # of JSON Lines, Parquet and datasets
    token_dtype: TokenDtype = TokenDtype.AUTO  # of raw token ids
    max_words: int = 0  # whitespace words of training text at most, each counted once;
    # more are an error; 0: no limit
    replace_invalid_utf8: bool = False  # U+FFFD for what is not UTF-8, else an error
    valid_fraction: float = 0.05  # share of each source's documents that is held out
    valid_words: int = 0  # whitespace words of each source held out instead; 0: a share
    weights: tuple[str, ...] = ()  # "source=2" draws it twice as often as its size says
    max_epochs: tuple[str, ...] = ()  # "source=4", or "4" for each: passes at most
    sequence_length: int = 1024  # tokens per window
    packing: Packing = Packing.CONCATENATE
    stride: int = 0  # tokens from window to window of one document; 0: no overlap
    bos: bool = False  # whether a document opens with BOS
    document_mask: bool = False  # whether attention stays within documents
    prompt_field: str = ""  # of JSON Lines, Parquet and datasets: a prompt before the
    # text, which is read and not learned (fine-tuning); packing must be documents
    random_length: float = 0.0  # share of training batches cut to a random length
    cache_dir: str = "data_cache"  # prepared shards, tokenizers, the sample corpus
    shard_bytes: int = 8_000_000  # of text per shard, the unit of parallel work
    workers: int = 0  # processes that prepare; 0 takes one per core
    beam: tuple[str, ...] = ()  # options of an Apache Beam pipeline that prepares,
    # such as "--runner=DirectRunner" (extra "beam"); empty: this machine does


@dataclasses.dataclass
class CleaningConfig:
    """What is removed or rewritten before anything is counted; nothing by default."""

    repair_unicode: bool = False  # mojibake, by ftfy (extra "clean")
    whitespace: bool = False  # runs of blanks to one space, none at the ends of lines
    min_words: int = 0  # documents of fewer whitespace words are dropped
    exact_duplicates: bool = False  # keeps the first of equal documents
    near_duplicates: float = 0.0  # drops from this similarity on, such as 0.8; 0: off


@dataclasses.dataclass
class ModelConfig:
    num_layers: int = 12
    width: int = 768
    num_heads: int = 12
    num_kv_heads: int = 0  # grouped-query heads; 0 means num_heads
    head_width: int = 0  # of attention; 0 means width / num_heads
    mlp: MLPKind = MLPKind.GELU
    mlp_width: int = 3072
    max_length: int = 1024  # longest input, in tokens
    positions: PositionKind = PositionKind.ROPE
    rope_theta: float = 10_000.0
    backbone: Backbone = Backbone.TRANSFORMER
    norm: NormKind = NormKind.RMS
    norm_epsilon: float = 1e-6
    norm_bias: bool = False  # of layer normalisation
    qk_norm: bool = False  # RMSNorm of queries and keys, per head
    attention_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False  # of the logits
    dropout: float = 0.1  # on each residual branch and, but for a DiT, the embedding
    tied_embeddings: bool = False
    vocab_size: int = 0  # least rows of the embedding, for imported models that have
    # more than their tokenizer has ids
    time_conditioning: bool = False  # whether a DiT is told sigma(t), else always 0
    condition_width: int = 128  # width of the time embedding of a DiT
    layers: LayerLayout = LayerLayout.AUTO
    attention: AttentionKind = AttentionKind.AUTO


@dataclasses.dataclass
class AutoregressiveConfig:
    """Next-token prediction; its negative log-likelihood is exact."""

    first_input: FirstInput = FirstInput.BOS  # before every window


@dataclasses.dataclass
class DiffusionConfig:
    """What all diffusion objectives share."""

    schedule: ScheduleKind = ScheduleKind.COSINE_LIGHT
    schedule_power: float = 2.0  # exponent of the polynomial schedule
    sigma_min: float = 1e-4  # of the geometric schedule
    sigma_max: float = 20.0  # of the geometric schedule; m(1) = 1 - exp(-sigma_max)
    low_mean: float = 0.12  # rates of the bimodal Gaussian: the lower component
    low_std: float = 0.02
    low_share: float = 0.6
    high_mean_start: float = 0.4  # the upper one, which moves in the course of the run
    high_mean_end: float = 0.85
    high_std: float = 0.08
    uniform_share: float = 0.01  # of rates uniform in (0, 1], so that none is left out
    time_sampling: TimeSampling = TimeSampling.STRATIFIED
    steps: int = 0  # T of a process in discrete time; 0 is continuous time


@dataclasses.dataclass
class MaskedDiffusionConfig(DiffusionConfig):
    """Absorbing-state diffusion; an upper bound."""

    parameterization: Parameterization = Parameterization.SUBS
    time_density: TimeDensity = TimeDensity.SCHEDULE
    weighting: LossWeighting = LossWeighting.BOUND
    softening: float = 0.1  # exponent of m'(t) in the softened weighting
    frequency_masking: float = 0.0  # how much earlier rare tokens are masked; 0: as all


@dataclasses.dataclass
class UniformDiffusionConfig(DiffusionConfig):
    """Uniform-state diffusion (UDLM): noise is another token; an upper bound."""


@dataclasses.dataclass
class OptimConfig:
    kind: OptimizerKind = OptimizerKind.ADAMW
    learning_rate: float = 3e-4  # peak
    warmup: str = "5%"
    schedule: LearningRateKind = LearningRateKind.COSINE
    decay: str = "20%"  # last part of a warmup_stable_decay run
    min_learning_rate: float = 3e-5  # at the end of the run
    weight_decay: float = 0.1  # on matrices; never on norms, biases, embeddings
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8
    momentum: float = 0.95  # of Muon
    clip_norm: float = 1.0  # global gradient norm; 0 switches clipping off
    ema_decay: float = 0.999  # 0 switches the moving average off
    on_extend: OnExtend = OnExtend.REFUSE  # when a run goes on with another budget


@dataclasses.dataclass
class TrainConfig:
    budget: str = "10 epochs"  # length of the run; one in words is never exceeded
    max_words: int = 0  # whitespace words seen at most, repeats included; 0: no limit
    batch_size: int = 256  # sequences per optimizer step, over all devices
    microbatch_size: int = 0  # sequences per forward pass; 0 takes the most that the
    # compiler says fits the device, and batch_size where the device tells no limit
    precision: Precision = Precision.AUTO
    remat: Remat = Remat.NONE
    loss_chunk_tokens: int = 0  # tokens per device whose logits exist at once; 0: as
    # many as suit the device
    offload_optimizer: bool = False  # whether moments stay in the host's memory and
    # visit the device in each step: it needs less memory, and is slower
    stop_after: str = "0"  # time of the clock, such as "170 minutes", after which a
    # start saves, ends and says how to go on
    max_bad_steps: int = 10  # updates in a row that are skipped, for a loss or gradient
    # that is not finite or a spike, before the run ends
    spike_deviations: float = 0.0  # skips the update of a loss that lies so many
    # standard deviations above the mean of the last spike_window; 0: never
    spike_window: int = 128  # steps
    watchdog: str = "30 minutes"  # time of the clock without a finished step after
    # which the stacks of all threads go to the log
    watchdog_exit: bool = False  # whether the run then ends, with status 75


@dataclasses.dataclass
class CheckpointConfig:
    every: str = "10%"
    save_after: str = "15 minutes"  # of the clock since the last save, for one more
    keep: int = 2  # newest checkpoints that stay
    keep_every: str = "0"  # those at its multiples stay for good
    keep_best: int = 0  # those of the lowest held-out nll_per_token that stay besides;
    # needs evaluate.every
    resume: str = "latest"  # "latest", "none", or a step; for modes that only read,
    # also the name of a milestone, such as chck_10M
    milestones: tuple[str, ...] = ()  # words seen at which weights are kept for good:
    # "10M words", "every 1M words"
    init_from: str = ""  # weights to begin with: a run folder, one of its milestones,
    # or a Hugging Face folder; empty draws them


@dataclasses.dataclass
class EvaluateConfig:
    every: str = "10%"
    batches: int = 20  # held-out batches per evaluation in training; 0 means all
    batch_size: int = 0  # sequences; 0 means train.batch_size
    draws: int = 8  # masks per held-out window at the end (diffusion)
    estimator: Estimator = Estimator.AUTO
    steps: int = 1000  # T of the estimator `discrete`; D3PM takes objective.steps
    json: str = ""  # file that --mode evaluate writes its figures to, besides
    judge: str = ""  # causal model that reads generated texts: a run folder, or a
    # Hugging Face model (extra "judge"); empty generates none
    judge_samples: int = 64  # texts it reads
    minimal_pairs: int = 700  # pairs of the sample grammar scored at the end
    tasks: tuple[str, ...] = ()  # zero-shot tasks of --mode evaluate: blimp,
    # supplement, ewok, entity_tracking, comps, global_piqa, one of their folders (as
    # blimp_fast) or a JSON Lines file of {prefix, completions, label, group}
    data: str = ""  # folder that holds the items of the tasks
    checkpoints: str = "final"  # that are asked the tasks: final, all (milestones, then
    # final), or some, such as chck_1M,chck_10M
    backend: ZeroShotBackend = ZeroShotBackend.AUTO
    elbo_draws: int = 64  # masks per candidate of the backend elbo
    ties: Ties = Ties.WRONG
    long_items: LongItems = LongItems.REFUSE
    bootstrap: int = 1000  # resamples of the items behind an interval
    acquisition: AcquisitionEdition = AcquisitionEdition.BABYLM_2026


@dataclasses.dataclass
class GenerateConfig:
    every: str = "20%"
    prompts: tuple[str, ...] = ()  # empty writes from scratch
    prompt_file: str = ""  # more prompts for --mode generate: one on each line, or JSON
    # Lines with a field "prompt"; "-" reads standard input
    output: str = ""  # JSON Lines file that --mode generate writes texts to; "-" is
    # standard output; empty shows them
    num_samples: int = 2  # per prompt
    max_new_tokens: int = 128
    temperature: float = 1.0  # 0 takes the most probable token
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0  # smallest set of tokens with this mass
    min_p: float = 0.0  # least probability beside that of the most probable token
    repetition_penalty: float = 1.0  # divides logits of tokens that were there; 1: off
    stop: tuple[str, ...] = ()  # texts end before the first of these behind the prompt
    batch_size: int = 0  # texts written together; 0 takes 64, or as many as fit
    sampler: SamplerKind = SamplerKind.AUTO
    steps: int = 128  # of the diffusion sampler
    tokens_per_call: int = 1  # of the sampler first_hitting; above 1 it is not exact
    block_length: int = 0  # the sampler confidence fills such blocks in turn; 0: all
    remasking: Remasking = Remasking.CAP
    remask_strength: float = 0.008
    noise_removal: NoiseRemoval = NoiseRemoval.DRAW
    guidance: float = 0.0  # how far from what the model writes without the prompt
    stride: int = 0  # new tokens per window, for texts longer than the model's context;
    # 0 refuses them
    stop_at_eos: bool = True  # whether a finished text ends the work
    show_steps: int = 0  # intermediate states that --mode generate shows


@dataclasses.dataclass
class ExportConfig:
    """What --mode export writes: folders that Hugging Face's transformers loads."""

    folder: str = ""  # where they are written; empty: export/ in the run folder
    checkpoints: str = "final"  # which of a run
    architecture: Architecture = Architecture.AUTO
    dtype: ExportDtype = ExportDtype.FLOAT32
    overwrite: bool = False  # whether what stands there may be replaced
    hub_repo: str = ""  # owner/name on the Hugging Face hub, for `push`
    push: Push = Push.OFF


@dataclasses.dataclass
class LogConfig:
    every: str = "10 steps"
    tensorboard: bool = True
    wandb: bool = False  # needs the extra "wandb"
    wandb_project: str = "lmjax"
    profile: str = ""  # steps whose trace goes to profile/ in the run folder, such as
    # "steps 20-25", for TensorBoard and xprof; empty: none


@dataclasses.dataclass
class ParallelConfig:
    data: int = 0  # devices that split the batch; 0 takes those left over; of several
    # TPU slices a multiple of their number, for this axis alone goes between them
    fsdp: int = 1  # devices that split batch and parameters
    tensor: int = 1  # devices that split heads, feed-forward and vocabulary
    coordinator: str = ""  # host:port of the first of several processes; "auto" asks
    # the TPU, Slurm or MPI that started them; empty: one process, unless on a TPU pod
    num_processes: int = 0  # in all; 0: what the environment says
    process_index: int = -1  # of this one, from 0; -1: what the environment says
    start_timeout: str = "5 minutes"  # that processes wait for each other at the start
    peer_timeout: str = "100 seconds"  # of silence after which a process counts as dead


@dataclasses.dataclass
class PlanConfig:
    """What --mode plan plans for."""

    target: str = ""  # devices that need not be there: v5e:4x4, v4:4x4x4, v5p:2x2x2,
    # v6e:16x16 (extra "plan"), a100-40gb, a100-80gb, h100-80gb, h200, l4, t4, v100, or
    # several, h100-80gb:8; empty: the machine at hand


@dataclasses.dataclass
class Config:
    """A whole run."""

    seed: int = 0
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    cleaning: CleaningConfig = dataclasses.field(default_factory=CleaningConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    objective: MaskedDiffusionConfig | UniformDiffusionConfig | AutoregressiveConfig = (
        dataclasses.field(default_factory=MaskedDiffusionConfig)
    )
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    generate: GenerateConfig = dataclasses.field(default_factory=GenerateConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    plan: PlanConfig = dataclasses.field(default_factory=PlanConfig)
