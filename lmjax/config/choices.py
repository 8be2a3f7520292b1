"""What a field of the config may choose from."""

import enum


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


class OnExtend(enum.Enum):
    """The learning rate of a run that goes on with another length than it began with.

    refuse lets no run go on whose learning rate would jump. rescale takes that of a run
    of the new length. hold takes that of the first length, and beyond it the minimum.
    rewarm warms up again where the run goes on, and ends with the new length.
    """

    REFUSE = "refuse"
    RESCALE = "rescale"
    HOLD = "hold"
    REWARM = "rewarm"


class AttentionKind(enum.Enum):
    """Implementation of attention; AUTO picks by device, mask and head width."""

    AUTO = "auto"
    XLA = "xla"
    CHUNKED = "chunked"
    BLOCKWISE = "blockwise"
    CUDNN = "cudnn"
    SPLASH = "splash"


class LayerLayout(enum.Enum):
    """How the layers run: AUTO unrolls up to 24 layers on CPU and GPU, else scans."""

    AUTO = "auto"
    SCAN = "scan"
    UNROLLED = "unrolled"


class Backbone(enum.Enum):
    """What the layers are; a DiT has adaptive norms, driven by the noise level."""

    TRANSFORMER = "transformer"
    DIT = "dit"


class PositionKind(enum.Enum):
    """How a model knows where a token stands."""

    ROPE = "rope"  # queries and keys are rotated
    LEARNED = "learned"  # a vector of each position is added to the embedding


class NormKind(enum.Enum):
    """Normalisation of a model."""

    RMS = "rms"
    LAYER = "layer"


class FirstInput(enum.Enum):
    """What a causal model reads before the first token of a window."""

    BOS = "bos"
    EOS = "eos"  # as models do whose BOS is their EOS: GPT-2, SmolLM2


class ScheduleKind(enum.Enum):
    """Noise rate m(t) of a diffusion process, with its mean over t."""

    LINEAR = "linear"  # t, MDLM's log-linear; 0.5
    COSINE_LIGHT = "cosine_light"  # 1 - cos(pi t / 2), MDLM's cosine; 0.363
    COSINE_HEAVY = "cosine_heavy"  # sin(pi t / 2), the cosine of MD4 and Duo; 0.637
    COSINE_SQUARED = "cosine_squared"  # sin^2(pi t / 2); 0.5
    POLYNOMIAL = "polynomial"  # t^schedule_power; 1 / (1 + schedule_power)
    GEOMETRIC = "geometric"  # geometric sigma from sigma_min to sigma_max
    BIMODAL_GAUSSIAN = (
        "bimodal_gaussian"  # rates around two means, see low_* and high_*
    )


class Parameterization(enum.Enum):
    """What a masked diffusion model predicts, and the bound that goes with it."""

    SUBS = "subs"  # the token under the mask (MDLM)
    SEDD = "sedd"  # ratios of probabilities, by score entropy
    D3PM = "d3pm"  # the token under the mask, or that it stays masked; needs steps


class TimeSampling(enum.Enum):
    """How the times of a batch are drawn; over the global batch in each case."""

    STRATIFIED = "stratified"  # one in each of equal bins
    ANTITHETIC = "antithetic"  # in pairs u, 1 - u
    UNIFORM = "uniform"  # each for itself


class TimeDensity(enum.Enum):
    """How often each mask rate is visited; the weight of the bound makes up for it."""

    SCHEDULE = "schedule"  # as the schedule does at uniform times
    CHANGE_OF_VARIABLES = "change_of_variables"  # log of the rate uniform (MDLM)
    IMPORTANCE = "importance"  # the density of least variance for a constant loss
    COUNT = "count"  # an exact number of tokens, uniform: the any-order loss


class LossWeighting(enum.Enum):
    """What a masked token's cross-entropy counts in training."""

    BOUND = "bound"  # m'(t) / m(t): the loss bounds the likelihood
    SOFTENED = "softened"  # m'(t)^softening / m(t): not a bound
    FLAT = "flat"  # the same at all rates, as in masked language models: not a bound


class Estimator(enum.Enum):
    """How the bound of a diffusion model is estimated on held-out text."""

    AUTO = "auto"  # count; discrete where objective.steps says so, in as many steps
    COUNT = "count"  # exact number of masked tokens, stratified over all windows
    CONTINUOUS = "continuous"  # times, stratified over all windows
    PLAIN = "plain"  # independent times, as most published figures
    DISCRETE = "discrete"  # the bound of a process in evaluate.steps steps


class ZeroShotBackend(enum.Enum):
    """How a model scores the candidates of a zero-shot item."""

    AUTO = "auto"  # causal for causal models, mlm for masked diffusion
    CAUSAL = "causal"  # the chain rule, from left to right
    MLM = "mlm"  # each token given all others (pseudo-log-likelihood)
    MLM_UNTIMED = "mlm_untimed"  # the same, a time-conditioned model told sigma 0
    MNTP = "mntp"  # the same, read one position before the mask
    ELBO = "elbo"  # the bound of masked diffusion, over evaluate.elbo_draws masks
    CHAIN = "chain"  # each token given those before it, all after it masked


class Ties(enum.Enum):
    """What becomes of an item whose best candidates score alike."""

    WRONG = "wrong"  # it is wrong, and so is one with a NaN
    OFFICIAL = "official"  # a draw among the best, NaN being -inf, as BabyLM's pipeline


class LongItems(enum.Enum):
    """What becomes of an item that is longer than the model's context."""

    REFUSE = "refuse"  # an error that names it
    TRUNCATE = "truncate"  # the beginning of what stands before its completions goes


class SamplerKind(enum.Enum):
    """How text is written."""

    AUTO = "auto"  # left_to_right, cached, analytic or ancestral, as the objective asks
    LEFT_TO_RIGHT = "left_to_right"
    ANCESTRAL = "ancestral"
    CACHED = "cached"  # the same tokens, without the steps in which nothing happens
    ANALYTIC = "analytic"  # by score ratios (SEDD)
    FIRST_HITTING = "first_hitting"  # one token after another, exact in continuous time
    CONFIDENCE = "confidence"  # the surest tokens first (LLaDA): not the model's law
    REMASK = "remask"  # may mask again what is revealed (ReMDM)


class Remasking(enum.Enum):
    """Chance that the sampler `remask` masks a revealed token again (ReMDM)."""

    CAP = "cap"  # at most remask_strength in each step
    RESCALE = "rescale"  # remask_strength of the largest valid chance
    CONFIDENCE = "confidence"  # more for tokens that were less sure
    LOOP = "loop"  # in the middle of the run, at a constant mask rate


class NoiseRemoval(enum.Enum):
    """What becomes of masks that the last step of a sampler leaves."""

    DRAW = "draw"  # drawn from the model
    GREEDY = "greedy"  # the most probable token


class OptimizerKind(enum.Enum):
    """What makes an update of a gradient."""

    ADAMW = "adamw"
    MUON = "muon"  # on the kernels of the blocks; AdamW on all else


class LearningRateKind(enum.Enum):
    """Shape of the learning rate after the warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"
    WARMUP_STABLE_DECAY = "warmup_stable_decay"


class Precision(enum.Enum):
    """Dtype of matrix products; parameters, logits and losses stay float32.

    AUTO takes bfloat16 where the hardware multiplies it, float16 with a dynamic loss
    scale on GPUs that do not (V100, T4), and float32 elsewhere.
    """

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Remat(enum.Enum):
    """What the backward pass computes again instead of keeping; from least to most.

    DOTS keeps the outputs of all linear layers; NAMED those of attention alone, about
    half as much, so that norms and the feed-forward block are computed again; FULL the
    inputs of layers.
    """

    NONE = "none"
    DOTS = "dots"
    NAMED = "named"
    FULL = "full"


class Architecture(enum.Enum):
    """Class of transformers that an exported model is for."""

    AUTO = "auto"  # the first of the next four that holds the model, else remote for
    # diffusion, else an error
    LLAMA = "llama"
    QWEN3 = "qwen3"  # Llama with norms of queries and keys
    ARCEE = "arcee"  # Llama without a gate in its mlp; transformers 4.53 and newer
    GPT2 = "gpt2"
    REMOTE = "remote"  # lmjax's own, whose code stands beside the weights


class ExportDtype(enum.Enum):
    """Number type of exported weights."""

    FLOAT32 = "float32"  # as trained
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Push(enum.Enum):
    """What becomes of an export on the Hugging Face hub."""

    OFF = "off"
    DRY_RUN = "dry_run"  # says what would be uploaded, without a network
    UPLOAD = "upload"


class AcquisitionEdition(enum.Enum):
    """BabyLM's formula for ages of acquisition: how words are asked, and scored."""

    BABYLM_2025 = "babylm_2025"  # alone, behind BOS; chance is 18.2 nats
    BABYLM_2026 = "babylm_2026"  # in their contexts; chance is ln(vocabulary) nats per
    # token; a correlation with p > 0.1 scores 0 (since July 2026)
