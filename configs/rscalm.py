"""RSCaLM: a Llama-like causal model (RoPE, RMSNorm, SwiGLU) on one's own text.

Source: the guide "How to Train" of RSCaLM, with what does not add up put right: 20
heads do not divide a width of 1024, nor 24 one of 1280; and only the smallest of its
three sizes has the parameters it is named after, for SwiGLU has three matrices.

    python -m lmjax.main --config configs/rscalm.py --config.data.train=corpus.txt
    python -m lmjax.main --config configs/rscalm.py:350m --config.data.train=corpus.txt

Sizes, with 32,000 ids and tied embeddings: 138m; 350m and 700m with a feed-forward
width of 2.75 and 2.7 times the model's; 435m and 880m, which are the guide's own shapes
(4 times). nano is for a CPU. Counts of parameters and tokens are told at the start
(--mode plan tells them alone); 20 tokens per parameter are a usual budget: 2.8 billion
for 138m. Hardware: 138m fits a GPU of 16 GB with train.microbatch_size=4.

The guide's commands and flags, in lmjax's words, stand in docs/rscalm.md.
"""

from lmjax.config import presets
from lmjax.config.schema import Config


def get_config(size: str = "138m") -> Config:
    """The config of a size."""
    return presets.rscalm(size)
