"""The config: one dataclass per room, the unit and meaning beside every field.

Values reach these fields from a file in `configs/`, then from the command line
(`--config.section.field=value`). After `checks.check` a config is read-only.
Durations are strings with a unit: "500 steps", "1 epochs", "10M tokens",
"10M words", "5%" (of the run); "0" means never. Where no value is meant, a field
holds 0, an empty string or an enum member: config flags can't be set to None.
"""

import dataclasses
import enum

SAMPLE_CORPUS = "sample"  # in data.train: the built-in corpus, rather than a file


class TokenizerKind(enum.Enum):
    """What a tokenizer is made of; what `tokenizer.path` names depends on it."""

    SENTENCEPIECE = "sentencepiece"  # a .model file
    HUGGINGFACE = "huggingface"  # a tokenizer.json, or the folder that holds it
    GPT2 = "gpt2"  # the folder with vocab.json and merges.txt
    HUB = "hub"  # owner/name or owner/name@revision on the Hugging Face hub
    BYTES = "bytes"  # one id per byte, nothing to load


class SentencePieceModel(enum.Enum):
    """What a trained SentencePiece tokenizer is."""

    BPE = "bpe"
    UNIGRAM = "unigram"


class DataFormat(enum.Enum):
    """How the files of a corpus are read; AUTO looks into each."""

    AUTO = "auto"
    TEXT = "text"
    JSON_LINES = "json_lines"
    PARQUET = "parquet"
    TORCH = "torch"  # torch.save of a list of tensors, one per document
    TOKEN_TEXT = "token_text"  # ids in decimal, one per line or separated by spaces
    TOKEN_IDS = "token_ids"  # raw ids, as nanoGPT writes them


class DocumentUnit(enum.Enum):
    """What ends a document of a text file; AUTO decides for each file."""

    AUTO = "auto"
    LINE = "line"
    BLOCK = "block"  # a blank line, or a heading
    HEADING = "heading"  # a line like `= = = title = = =`, which opens the next
    PASSAGE = "passage"  # the line end before 32 KiB are full: for text without any
    FILE = "file"


class TokenDtype(enum.Enum):
    """Number type of raw token ids; AUTO asks the sidecar, then the numbers."""

    AUTO = "auto"
    UINT16 = "uint16"
    UINT32 = "uint32"


class Packing(enum.Enum):
    """How documents fill windows."""

    CONCATENATE = "concatenate"  # joined, then split: no padding but at the end
    BEST_FIT = "best_fit"  # whole documents side by side, where they fit a window
    DOCUMENTS = "documents"  # one document per window; a long one takes several


class MLPKind(enum.Enum):
    """Feed-forward block of a transformer layer."""

    SWIGLU = "swiglu"
    GELU = "gelu"


class AttentionKind(enum.Enum):
    """Implementation of attention; AUTO picks by device, mask and head width."""

    AUTO = "auto"
    XLA = "xla"
    CHUNKED = "chunked"
    CUDNN = "cudnn"
    SPLASH = "splash"


class LayerLayout(enum.Enum):
    """How the layers run: AUTO unrolls up to 24 layers on CPU and GPU, else scans."""

    AUTO = "auto"
    SCAN = "scan"
    UNROLLED = "unrolled"


class ScheduleKind(enum.Enum):
    """Mask rate m(t) of masked diffusion."""

    LINEAR = "linear"
    COSINE = "cosine"


class LearningRateKind(enum.Enum):
    """Shape of the learning rate after the warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"
    WARMUP_STABLE_DECAY = "warmup_stable_decay"


class Precision(enum.Enum):
    """Dtype of matrix products; parameters, logits and losses stay float32."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Remat(enum.Enum):
    """What the backward pass computes again instead of keeping."""

    NONE = "none"
    DOTS = "dots"
    FULL = "full"


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
    mlp: MLPKind = MLPKind.GELU
    mlp_width: int = 3072
    max_length: int = 1024  # longest input, in tokens
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6
    qk_norm: bool = False  # RMSNorm of queries and keys, per head
    bias: bool = False  # biases in attention and feed-forward projections
    dropout: float = 0.1  # on the embedding and each residual branch
    tied_embeddings: bool = False
    time_conditioning: bool = False  # DiT: adaptive norms fed with sigma(t)
    condition_width: int = 128  # width of the time embedding of a DiT
    layers: LayerLayout = LayerLayout.AUTO
    attention: AttentionKind = AttentionKind.AUTO


@dataclasses.dataclass
class AutoregressiveConfig:
    """Next-token prediction; its negative log-likelihood is exact."""


@dataclasses.dataclass
class MaskedDiffusionConfig:
    """Absorbing-state diffusion in continuous time (SUBS); an upper bound."""

    schedule: ScheduleKind = ScheduleKind.COSINE


@dataclasses.dataclass
class OptimConfig:
    learning_rate: float = 3e-4  # peak
    warmup: str = "5%"
    schedule: LearningRateKind = LearningRateKind.COSINE
    decay: str = "20%"  # last part of a warmup_stable_decay run
    min_learning_rate: float = 3e-5  # at the end of the run
    weight_decay: float = 0.1  # on matrices; never on norms, biases, embeddings
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8
    clip_norm: float = 1.0  # global gradient norm; 0 switches clipping off
    ema_decay: float = 0.999  # 0 switches the moving average off


@dataclasses.dataclass
class TrainConfig:
    budget: str = "10 epochs"  # length of the run
    batch_size: int = 256  # sequences per optimizer step, over all devices
    microbatch_size: int = 0  # sequences per forward pass; 0 means batch_size
    precision: Precision = Precision.AUTO
    remat: Remat = Remat.NONE
    loss_chunk_tokens: int = 8192  # tokens whose logits exist at once


@dataclasses.dataclass
class CheckpointConfig:
    every: str = "10%"
    keep: int = 2  # newest checkpoints that stay
    resume: str = "latest"  # "latest", "none", or a step


@dataclasses.dataclass
class EvaluateConfig:
    every: str = "10%"
    batches: int = 20  # held-out batches per evaluation in training; 0 means all
    batch_size: int = 0  # sequences; 0 means train.batch_size
    draws: int = 8  # masks per held-out window at the end (diffusion)
    minimal_pairs: int = 700  # pairs of the sample grammar scored at the end


@dataclasses.dataclass
class GenerateConfig:
    every: str = "20%"
    prompts: tuple[str, ...] = ()  # empty writes from scratch
    num_samples: int = 2  # per prompt
    max_new_tokens: int = 128
    temperature: float = 1.0  # 0 takes the most probable token
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0  # smallest set of tokens with this mass
    steps: int = 128  # of the diffusion sampler


@dataclasses.dataclass
class LogConfig:
    every: str = "10 steps"
    tensorboard: bool = True
    wandb: bool = False  # needs the extra "wandb"
    wandb_project: str = "lmjax"


@dataclasses.dataclass
class ParallelConfig:
    data: int = 0  # devices that split the batch; 0 takes those left over
    fsdp: int = 1  # devices that split batch and parameters
    tensor: int = 1  # devices that split heads, feed-forward and vocabulary


@dataclasses.dataclass
class Config:
    """A whole run."""

    seed: int = 0
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    cleaning: CleaningConfig = dataclasses.field(default_factory=CleaningConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    objective: MaskedDiffusionConfig | AutoregressiveConfig = dataclasses.field(
        default_factory=MaskedDiffusionConfig
    )
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    generate: GenerateConfig = dataclasses.field(default_factory=GenerateConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
