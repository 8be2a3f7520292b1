"""lmjax: small language models, autoregressive and diffusion, from one config."""

__version__ = "0.1.0"
