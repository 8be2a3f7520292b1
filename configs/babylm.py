"""BabyLM from raw text: masked diffusion, or its autoregressive twin.

Source: the BabyLM challenge (10M or 100M words, at most 10 epochs) and the guide of
EDLM-BabyLM, whose three sizes these are. The text is looked for in data/babylm.

    python -m lmjax.main --config configs/babylm.py            masked diffusion, small
    python -m lmjax.main --config configs/babylm.py:ar,tiny    autoregressive, tiny
    python -m lmjax.main --config configs/babylm.py:strict_small    10M words, 19 models
    python -m lmjax.main --config configs/babylm.py:sample     no text needed, on a CPU

Variants, in any order: diffusion, uniform or ar; nano, tiny, small, medium or xl;
strict_small or strict, the tracks of BabyLM, whose limits of words then hold and whose
milestones (chck_1M, ...) are kept; sample, which is half of nano on the built-in corpus
unless a size is named. What they set stands in lmjax/config/presets.py.
"""

from lmjax.config import presets
from lmjax.config.schema import Config


def get_config(variants: str = "") -> Config:
    """The config of comma-separated variants."""
    return presets.babylm(variants.split(","))
