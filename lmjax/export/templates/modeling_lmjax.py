"""Models of lmjax in torch: masked and uniform diffusion, and causal ones.

Needs torch and transformers (4.51 or newer) alone. Array names end in the letters of
their dimensions: B batch, L length, S keys, D width, N query heads, K kv heads, H head
width, V vocabulary, E condition width.
"""

import dataclasses
import math
import types

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MaskedLMOutput,
)

# How transformers calls the cache in outputs: from 5.24 on by its name alone.
_FIELDS = {field.name for field in dataclasses.fields(BaseModelOutputWithPast)}
CACHE = "cache" if "cache" in _FIELDS else "past_key_values"
MAX_SIGMA = 20.0  # stands for the infinite noise of a row that is all masks
FREQUENCIES = 256  # width of the sinusoidal embedding of sigma
MAX_PERIOD = 10_000.0


class LmjaxConfig(PretrainedConfig):
    """Sizes and choices of a model; DEFAULTS says which there are."""

    model_type = "lmjax"
    keys_to_ignore_at_inference = ("past_key_values", "cache")
    DEFAULTS = types.MappingProxyType(
        {
            "vocab_size": 32,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 32,
            "max_position_embeddings": 1024,
            "backbone": "transformer",  # or dit
            "causal": False,
            "mlp": "gelu",  # in its tanh form, or swiglu
            "norm": "rms",  # or layer
            "norm_epsilon": 1e-6,
            "norm_bias": False,
            "qk_norm": False,
            "attention_bias": False,
            "mlp_bias": False,
            "head_bias": False,
            "positions": "rope",  # or learned
            "rotary_base": 10_000.0,
            "dropout": 0.0,
            "time_conditioning": False,
            "condition_width": 128,
            "process": "mask",  # or uniform; none for a causal model
            "parameterization": "subs",  # or sedd, d3pm: what masked logits stand for
            "schedule": types.MappingProxyType({"kind": "linear"}),  # see `noise_rate`
            "unpredictable_token_ids": (),  # never predicted
            "mask_token_id": None,
            "initializer_range": 0.02,
            "use_cache": True,
        }
    )

    def __init__(self, **kwargs):
        for name, default in self.DEFAULTS.items():
            value = kwargs.pop(name, default)
            if isinstance(value, types.MappingProxyType):
                value = dict(value)
            setattr(self, name, list(value) if isinstance(value, tuple) else value)
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
        self.tie_word_embeddings = kwargs["tie_word_embeddings"]


class Norm(nn.Module):
    """RMS or layer normalisation, its statistics in float32."""

    def __init__(self, width, *, kind, epsilon, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.kind, self.epsilon = kind, epsilon

    def forward(self, x):
        x32 = x.float()
        if self.kind == "layer":
            x32 = x32 - x32.mean(-1, keepdim=True)
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.epsilon)
        y = (x32 * scale).to(x.dtype) * self.weight.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


def make_norm(config):
    return Norm(
        config.hidden_size,
        kind=config.norm,
        epsilon=config.norm_epsilon,
        bias=config.norm_bias,
    )


def rotate(x_BNLH, cos, sin):
    """Rotary positions: the pair (x[i], x[i + H/2]) is turned by its angle."""
    first, second = x_BNLH.float().chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(turned, dim=-1).to(x_BNLH.dtype)


class Attention(nn.Module):
    """Self-attention with grouped queries; keys and values go through a cache."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width, bias = config.hidden_size, config.attention_bias
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.groups = heads // kv_heads
        self.q_proj = nn.Linear(width, heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * self.head_dim, width, bias=bias)

        def head_norm():
            if not config.qk_norm:
                return None
            return Norm(
                self.head_dim, kind="rms", epsilon=config.norm_epsilon, bias=False
            )

        self.q_norm, self.k_norm = head_norm(), head_norm()

    def forward(self, x_BLD, shared):
        def heads(y):
            return y.unflatten(-1, (-1, self.head_dim))

        q, k, v = (
            heads(self.q_proj(x_BLD)),
            heads(self.k_proj(x_BLD)),
            self.v_proj(x_BLD),
        )
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), heads(v).transpose(1, 2)
        if shared["rotary"] is not None:
            q, k = rotate(q, *shared["rotary"]), rotate(k, *shared["rotary"])
        if shared["cache"] is not None:
            k, v = shared["cache"].update(k, v, self.layer)
        k = k.repeat_interleave(self.groups, dim=1)
        v = v.repeat_interleave(self.groups, dim=1)
        weights = None
        if shared["want_weights"]:
            scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(self.head_dim)
            weights = torch.softmax(scores + shared["bias"].float(), dim=-1).to(q.dtype)
            y = weights @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=shared["bias"])
        return self.o_proj(y.transpose(1, 2).flatten(2)), weights


class MLP(nn.Module):
    """SwiGLU, or GELU in its tanh form."""

    def __init__(self, config):
        super().__init__()
        width, inner, bias = (
            config.hidden_size,
            config.intermediate_size,
            config.mlp_bias,
        )
        self.up_proj = nn.Linear(width, inner, bias=bias)
        gated = config.mlp == "swiglu"
        self.gate_proj = nn.Linear(width, inner, bias=bias) if gated else None
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x):
        if self.gate_proj is None:
            return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Float32Linear(nn.Linear):
    """Computed in float32, whatever the dtype of the model."""

    def forward(self, x):
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x.float(), self.weight.float(), bias)


class NoiseEmbedding(nn.Module):
    """sigma [B] -> sinusoid -> two-layer network -> condition [B, E]."""

    def __init__(self, width):
        super().__init__()
        self.first = Float32Linear(FREQUENCIES, width)
        self.second = Float32Linear(width, width)

    def forward(self, sigma_B):
        half = FREQUENCIES // 2
        steps = torch.arange(half, device=sigma_B.device, dtype=torch.float32)
        angles = sigma_B.float()[:, None] * torch.exp(
            -math.log(MAX_PERIOD) * steps / half
        )
        wave = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return F.silu(self.second(F.silu(self.first(wave))))


def modulated(norm, x, shift, scale):
    """norm(x) * (1 + scale) + shift, in float32 up to there."""
    return (norm(x.float()) * (1 + scale) + shift).to(x.dtype)


class Layer(nn.Module):
    """Pre-norm attention and mlp; in a DiT they are modulated and gated."""

    def __init__(self, config, layer):
        super().__init__()
        self.attention_norm, self.mlp_norm = make_norm(config), make_norm(config)
        self.attention, self.mlp = Attention(config, layer), MLP(config)
        self.dropout = nn.Dropout(config.dropout)
        self.modulation = None
        if config.backbone == "dit":
            size = 6 * config.hidden_size
            self.modulation = Float32Linear(config.condition_width, size)

    def forward(self, x_BLD, condition_BE, shared):
        if self.modulation is None:
            y_BLD, weights = self.attention(self.attention_norm(x_BLD), shared)
            x_BLD = x_BLD + self.dropout(y_BLD)
            return x_BLD + self.dropout(self.mlp(self.mlp_norm(x_BLD))), weights
        parts = self.modulation(condition_BE)[:, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        y_BLD = modulated(self.attention_norm, x_BLD, shift1, scale1)
        y_BLD, weights = self.attention(y_BLD, shared)
        x_BLD = x_BLD + gate1.to(x_BLD.dtype) * self.dropout(y_BLD)
        y_BLD = self.mlp(modulated(self.mlp_norm, x_BLD, shift2, scale2))
        return x_BLD + gate2.to(x_BLD.dtype) * self.dropout(y_BLD), weights


class LmjaxPreTrainedModel(PreTrainedModel):
    config_class = LmjaxConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("Layer",)
    _supports_sdpa = True
    _supports_cache_class = True  # read by transformers 4

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, Norm):
            nn.init.ones_(module.weight)
        if isinstance(module, Head) and module.weight is not None:
            nn.init.zeros_(module.weight)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


class LmjaxModel(LmjaxPreTrainedModel):
    """Token ids [B, L] to hidden states [B, L, D]."""

    _keys_to_ignore_on_load_unexpected = ("lm_head",)  # a headless model has none

    def __init__(self, config):
        super().__init__(config)
        width = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.embed_positions = None
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, width)
        self.layers = nn.ModuleList(
            Layer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.final_norm = make_norm(config)
        self.noise_embedding = self.final_modulation = None
        if config.backbone == "dit":
            self.noise_embedding = NoiseEmbedding(config.condition_width)
            self.final_modulation = Float32Linear(config.condition_width, 2 * width)
        self.embedding_dropout = nn.Dropout(
            0.0 if config.backbone == "dit" else config.dropout
        )
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        past_key_values=None,
        cache=None,
        inputs_embeds=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        sigma=None,
        **kwargs,
    ):
        """Hidden states.

        Args:
          attention_mask: [B, S], [B, L, S] or [B, 1, L, S]; padding may stand on either
            side.
          token_type_ids: ignored.
          cache: keys and values of what came before; `past_key_values` until
            transformers 5.23.
          sigma: noise level of each row, float [B]. A model that is conditioned on it
            and is given none takes that of the share of masks in the row.
        """
        config = self.config
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x_BLD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        wants_cache = config.use_cache if use_cache is None else use_cache
        cache = past_key_values if cache is None else cache
        cache = cache if config.causal else None
        training = self.gradient_checkpointing and self.training
        if config.causal and cache is None and wants_cache and not training:
            cache = DynamicCache()
        past = 0 if cache is None else int(cache.get_seq_length())
        if position_ids is None:
            position_ids = _positions(x_BLD, attention_mask, past)
        shared = {
            "bias": _attention_bias(x_BLD, attention_mask, past, config.causal),
            "rotary": None,
            "cache": cache,
            "want_weights": bool(output_attentions),
        }
        if self.embed_positions is None:
            shared["rotary"] = self._rotary(position_ids)
        else:
            x_BLD = x_BLD + self.embed_positions(position_ids)
        condition_BE = None
        if self.noise_embedding is not None:
            sigma_B = self._sigma(sigma, input_ids, attention_mask, x_BLD)
            condition_BE = self.noise_embedding(sigma_B)
        x_BLD = self.embedding_dropout(x_BLD)
        all_hidden, all_weights = (), ()
        for layer in self.layers:
            all_hidden += (x_BLD,)
            if training:
                x_BLD, weights = self._gradient_checkpointing_func(
                    layer.__call__, x_BLD, condition_BE, shared
                )
            else:
                x_BLD, weights = layer(x_BLD, condition_BE, shared)
            all_weights += (weights,)
        if self.final_modulation is None:
            x_BLD = self.final_norm(x_BLD)
        else:
            parts = self.final_modulation(condition_BE)[:, None]
            x_BLD = modulated(self.final_norm, x_BLD, *parts.chunk(2, dim=-1))
        all_hidden += (x_BLD,)
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        output = BaseModelOutputWithPast(
            last_hidden_state=x_BLD,
            **{CACHE: cache if wants_cache else None},
            hidden_states=all_hidden if output_hidden_states else None,
            attentions=all_weights if output_attentions else None,
        )
        return _returned(output, return_dict, config)

    def _rotary(self, position_ids):
        """Cosines and sines [B, 1, L, H/2] of the angles of positions."""
        half = self.config.head_dim // 2
        steps = torch.arange(half, device=position_ids.device, dtype=torch.float32)
        frequencies = self.config.rotary_base ** (-steps / half)
        angles = position_ids[:, None, :, None].float() * frequencies
        return angles.cos(), angles.sin()

    def _sigma(self, sigma, input_ids, attention_mask, x_BLD):
        """Noise level of each row; 0 for a model that is not told."""
        if not self.config.time_conditioning:
            return x_BLD.new_zeros(1, dtype=torch.float32)
        if sigma is not None:
            sigma_B = torch.as_tensor(sigma, device=x_BLD.device, dtype=torch.float32)
            return sigma_B.expand(x_BLD.shape[0])
        if input_ids is None:
            raise ValueError("with inputs_embeds, give the noise level sigma too")
        attended = torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is not None:
            while attention_mask.dim() > 2:  # attended by any position
                attention_mask = attention_mask.amax(1)
            attended = _allowed(attention_mask)
        masks = attended & (input_ids == self.config.mask_token_id)
        return sigma_of(masks.sum(1) / attended.sum(1).clamp(min=1))


def sigma_of(rate):
    """Total noise -log(1 - rate), at most MAX_SIGMA."""
    return (-torch.log1p(-rate.float())).clamp(max=MAX_SIGMA)


def noise_rate(schedule, t):
    """m(t) of a schedule, the probability that a token is noise at t; float64."""
    kind = schedule["kind"]
    quarter = math.pi / 2 * t
    if kind == "linear":
        return t
    if kind == "cosine_light":
        return 2 * torch.sin(quarter / 2).square()
    if kind == "cosine_heavy":
        return torch.sin(quarter)
    if kind == "cosine_squared":
        return torch.sin(quarter).square()
    if kind == "polynomial":
        return t ** schedule["power"]
    if kind == "geometric":
        low, high = schedule["sigma_min"], schedule["sigma_max"]
        return -torch.expm1(-low * torch.expm1(t * math.log(high / low)))
    if kind == "bimodal_gaussian":
        return _bimodal_rate(schedule, t)
    raise ValueError(f"unknown schedule {kind!r}")


def _bimodal_rate(schedule, t):
    """Quantiles of two Gaussians cut off at 0 and 1, and a share of uniform rates."""
    uniform = schedule["uniform_share"]
    shares = (1 - uniform) * schedule["low_share"], 0.0
    shares = shares[0], 1 - uniform - shares[0]
    means = schedule["low_mean"], schedule["high_mean"]
    deviations = schedule["low_std"], schedule["high_std"]

    def below(rate):
        total = uniform * rate
        for share, mean, std in zip(shares, means, deviations, strict=True):
            ends = torch.tensor([0.0, 1.0], dtype=rate.dtype)
            first, last = torch.special.ndtr((ends - mean) / std)
            inside = torch.special.ndtr((rate - mean) / std) - first
            total = total + share * inside / (last - first)
        return total

    low, high = torch.zeros_like(t), torch.ones_like(t)
    for _ in range(60):
        middle = (low + high) / 2
        low = torch.where(below(middle) < t, middle, low)
        high = torch.where(below(middle) < t, high, middle)
    return high


def _allowed(attention_mask):
    """Which positions are attended, as bool."""
    return attention_mask.bool() if attention_mask.dim() < 4 else attention_mask >= 0


def _positions(x_BLD, attention_mask, past):
    """Positions [B, L], counted from the first attended token of each row."""
    length, device = x_BLD.shape[1], x_BLD.device
    if attention_mask is None or attention_mask.dim() != 2:
        return torch.arange(past, past + length, device=device)[None]
    if attention_mask.shape[1] == length and past:  # says nothing of the past
        attention_mask = F.pad(attention_mask, (past, 0), value=1)
    counted = _allowed(attention_mask).long().cumsum(1) - 1
    return counted.clamp(min=0)[:, -length:]


def _attention_bias(x_BLD, attention_mask, past, causal):
    """What is added to the scores, [B or 1, 1, L, S]; None where all see all.

    Finite, so that a position that may see nothing has finite values too.
    """
    length, device, dtype = x_BLD.shape[1], x_BLD.device, x_BLD.dtype
    num_keys = past + length
    seen = torch.ones(1, 1, length, num_keys, dtype=torch.bool, device=device)
    if causal:
        seen = seen.tril(diagonal=past)
    elif attention_mask is None:
        return None
    if attention_mask is not None:
        if attention_mask.dim() == 4 and attention_mask.is_floating_point():
            attended = attention_mask >= 0  # a bias already
        else:
            attended = attention_mask.bool()
        if attended.dim() < 4:
            middle = (1, 1) if attended.dim() == 2 else (1,)
            attended = attended.unflatten(0, (-1, *middle))
        missing = num_keys - attended.shape[-1]
        seen = seen & F.pad(attended, (max(missing, 0), 0), value=True)
    bias = torch.zeros(seen.shape, dtype=dtype, device=device)
    return bias.masked_fill(~seen, torch.finfo(dtype).min)


def _returned(output, return_dict, config):
    """A tuple rather than an object, where that is asked for."""
    if return_dict is None:
        return_dict = getattr(config, "return_dict", True)
    return output if return_dict else output.to_tuple()


class Head(nn.Module):
    """Logits of hidden states, by a matrix of its own or by the embedding's."""

    def __init__(self, config):
        super().__init__()
        shape = (config.vocab_size, config.hidden_size)
        tied = config.tie_word_embeddings
        self.weight = None if tied else nn.Parameter(torch.zeros(shape))
        bias = torch.zeros(config.vocab_size) if config.head_bias else None
        self.bias = None if bias is None else nn.Parameter(bias)
        self.unpredictable = config.unpredictable_token_ids

    def forward(self, hidden, embedding):
        weight = embedding.weight if self.weight is None else self.weight
        logits = F.linear(hidden, weight, self.bias)
        never = torch.tensor(self.unpredictable, dtype=torch.long, device=logits.device)
        return logits.index_fill(-1, never, torch.finfo(logits.dtype).min)


class LmjaxForMaskedLM(LmjaxPreTrainedModel):
    """Logits of the token at each position, for masked and uniform diffusion."""

    def __init__(self, config):
        super().__init__(config)
        self.model, self.lm_head = LmjaxModel(config), Head(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        """Logits [B, L, V], and the mean cost of labels that are not -100."""
        return_dict = kwargs.pop("return_dict", None)
        hidden = self.model(
            input_ids, attention_mask=attention_mask, return_dict=True, **kwargs
        )
        logits = self.lm_head(hidden.last_hidden_state, self.model.embed_tokens)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        output = MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=hidden.hidden_states,
            attentions=hidden.attentions,
        )
        return _returned(output, return_dict, self.config)

    @torch.no_grad()
    def generate_diffusion(
        self,
        input_ids=None,
        attention_mask=None,
        *,
        max_new_tokens=0,
        num_samples=1,
        steps=128,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        stop_at_eos=True,
        generator=None,
    ):
        """Texts by the reverse process; ids [B, L] with the prompt in them.

        Masked diffusion reveals tokens over `steps` equal steps of time and calls the
        network where something is revealed. Uniform-state diffusion calls it in each.

        Args:
          input_ids: prompts [B, P], kept as they are but for masks, which are filled
            in; None opens `num_samples` texts with BOS.
          attention_mask: [B, P], 0 on padding to the left of prompts.
          max_new_tokens: how many tokens follow the prompt.
          temperature: divides the logits; 0 takes the most probable token.
          top_k, top_p: keep the most probable tokens; 0 and 1 keep all.
          stop_at_eos: whether EOS behind the prompt ends a text: EOS follows then.
        """
        config, device = self.config, self.device
        if input_ids is None:
            input_ids = torch.full((num_samples, 1), config.bos_token_id, device=device)
        room = (0, max_new_tokens)
        tokens_BL = F.pad(input_ids, room, value=config.mask_token_id)
        free_BL = tokens_BL == config.mask_token_id
        if attention_mask is not None:
            attention_mask = F.pad(attention_mask, room, value=1)
            free_BL = free_BL & attention_mask.bool()
        draw = _Draw(temperature, top_k, top_p, generator)
        if device.type == "mps":  # has no double precision
            draw.dtype = torch.float32
        times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        rates = noise_rate(config.schedule, times)
        rates[0] = 0.0

        def call(rate, where_BL):
            sigma_B = sigma_of(rate).to(device).expand(len(tokens_BL))
            output = self(tokens_BL, attention_mask, sigma=sigma_B, return_dict=True)
            return output.logits[where_BL].float()

        fill = self._denoise if config.process == "uniform" else self._unmask
        fill(call, tokens_BL, free_BL, rates, draw)
        if stop_at_eos and config.eos_token_id is not None:
            place_L = torch.arange(tokens_BL.shape[1], device=device)
            last_B = torch.where(free_BL, -1, place_L).amax(1, keepdim=True)
            ends_BL = (tokens_BL == config.eos_token_id) & (place_L > last_B)
            tokens_BL[ends_BL.cumsum(1) > 0] = config.eos_token_id
        return tokens_BL

    def _unmask(self, call, tokens_BL, free_BL, rates, draw):
        """Fills masks by ancestral sampling, in place."""
        mask, is_d3pm = (
            self.config.mask_token_id,
            self.config.parameterization == "d3pm",
        )
        steps = len(rates) - 1
        if rates[-1] < 1:  # the prior holds some tokens already
            kept_BL = free_BL & (draw.uniform(tokens_BL) >= rates[-1])
            tokens_BL[kept_BL] = draw.noise(self._predictable(), tokens_BL)[kept_BL]
        for step in range(steps, 0, -1):
            rate, after = rates[step], rates[step - 1]
            masked_BL = free_BL & (tokens_BL == mask)
            coins_BL = draw.uniform(tokens_BL)
            if is_d3pm:
                # The network may say that a token stays masked, by its own chance.
                stays = torch.softmax(call(rate, masked_BL), dim=-1)[:, mask].to(
                    draw.dtype
                )
                below = (1 - rate) * stays + rate
                reveal_BL = masked_BL.clone()
                reveal_BL[masked_BL] = coins_BL[masked_BL] * below < (rate - after) * (
                    1 - stays
                )
            else:
                reveal_BL = masked_BL & (coins_BL * rate < rate - after)
            if reveal_BL.any():
                logits = call(rate, reveal_BL)
                logits[:, mask] = -torch.inf
                tokens_BL[reveal_BL] = draw(logits)
        if is_d3pm:  # nothing carries tokens over to time 0: all are decoded once more
            logits = call(rates[0], free_BL)
            logits[:, mask] = -torch.inf
            tokens_BL[free_BL] = draw(logits)

    def _denoise(self, call, tokens_BL, free_BL, rates, draw):
        """Denoises uniform tokens, in place (UDLM, Schiff et al. 2024)."""
        ids = self._predictable()
        tokens_BL[free_BL] = draw.noise(ids, tokens_BL)[free_BL]
        for step in range(len(rates) - 1, 0, -1):
            rate, after = rates[step], rates[step - 1]
            alpha, alpha_after = 1 - rate, 1 - after
            ratio = alpha / alpha_after if alpha_after > 0 else torch.zeros_like(alpha)
            logits = call(rate, free_BL)
            now = tokens_BL[free_BL]
            likely = draw.law(logits).gather(-1, now[:, None])[:, 0].to(draw.dtype)
            # A token stays, is drawn from the model, or becomes a uniform one.
            drawn, noise = rate - after, (1 - ratio) * after
            total = len(ids) * alpha * likely + ratio * after + drawn + noise
            point = draw.uniform(tokens_BL)[free_BL] * total
            uniform = draw.noise(ids, tokens_BL)[free_BL]
            now = torch.where(point < drawn + noise, uniform, now)
            tokens_BL[free_BL] = torch.where(point < drawn, draw(logits), now)

    def _predictable(self):
        """Ids that the model predicts, but for the mask."""
        ids = torch.ones(self.config.vocab_size, dtype=torch.bool, device=self.device)
        ids[[*self.config.unpredictable_token_ids, self.config.mask_token_id]] = False
        return ids.nonzero()[:, 0]


class _Draw:
    """Draws tokens from logits [n, V], and random numbers, with one generator."""

    dtype = torch.float64  # of random numbers

    def __init__(self, temperature, top_k, top_p, generator):
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.generator = generator

    def __call__(self, logits):
        law = self.law(logits)
        return torch.multinomial(law, 1, generator=self.generator)[:, 0]

    def law(self, logits):
        """Probabilities of the draws; equals of the last token that is kept stay."""
        if self.temperature == 0:
            return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p < 1:
            ordered = logits.sort(dim=-1, descending=True).values
            law = ordered.softmax(-1)
            outside = law.cumsum(-1) - law >= self.top_p
            outside[:, 0] = False
            least = ordered.masked_fill(outside, torch.inf).amin(-1, keepdim=True)
            logits = logits.masked_fill(logits < least, -torch.inf)
        return logits.softmax(-1)

    def uniform(self, like_BL):
        """Uniform in [0, 1), [B, L]."""
        return torch.rand(
            like_BL.shape,
            dtype=self.dtype,
            device=like_BL.device,
            generator=self.generator,
        )

    def noise(self, ids, like_BL):
        """Uniform ids [B, L]."""
        index_BL = torch.randint(
            len(ids), like_BL.shape, device=like_BL.device, generator=self.generator
        )
        return ids[index_BL]


class LmjaxForCausalLM(LmjaxPreTrainedModel, GenerationMixin):
    """Logits of the token behind each position."""

    def __init__(self, config):
        super().__init__(config)
        self.model, self.lm_head = LmjaxModel(config), Head(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        cache=None,
        labels=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """Logits [B, L, V], and the mean cost of the next labels that are not -100."""
        return_dict = kwargs.pop("return_dict", None)
        hidden = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            return_dict=True,
            **kwargs,
        )
        last = hidden.last_hidden_state[:, -logits_to_keep:]  # 0 keeps all
        logits = self.lm_head(last, self.model.embed_tokens)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten()
            )
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE: getattr(hidden, CACHE)},
            hidden_states=hidden.hidden_states,
            attentions=hidden.attentions,
        )
        return _returned(output, return_dict, self.config)
