"""Whether a fused kernel of attention is right on the device that is to run it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.models.attention_kernels import AttentionFunction, library_attention

LENGTH, NUM_HEADS, NUM_KV_HEADS = 256, 2, 1
# Distance from XLA's result over its size. Rounding to bfloat16 leaves 0.01; a mask or
# a scale that is wrong leaves more than 0.1.
TOLERANCE = 0.03


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionCheck:
    """Runs an implementation once on a tiny input, and compares it with XLA.

    Kernels depend on drivers and libraries beside the program: some versions refuse to
    run, and some have computed something else. Bidirectional models are told lengths of
    rows, so the check tells them too.

    Attributes:
      causal, head_width, dtype: those of the model.
      segments: whether attention stays within documents.
    """

    causal: bool
    head_width: int
    dtype: jnp.dtype
    segments: bool

    def __call__(self, attend: AttentionFunction) -> str:
        """What is wrong with it on this process's first device; empty if nothing."""
        return _fault(self, attend)

    def run(self, attend: AttentionFunction) -> tuple[np.ndarray, np.ndarray]:
        """Values, and the gradients of a sum over them, each as one float32 vector."""
        generator = np.random.default_rng(0)
        shape = (2, LENGTH, NUM_HEADS, self.head_width)
        kv_shape = (2, LENGTH, NUM_KV_HEADS, self.head_width)
        device = jax.local_devices()[0]
        q_BLNH, k_BLKH, v_BLKH, weights_BLNH = (
            jax.device_put(generator.normal(size=size).astype(self.dtype), device)
            for size in (shape, kv_shape, kv_shape, shape)
        )
        lengths_B = np.array([LENGTH, LENGTH // 2 + 3], np.int32)
        segments_BL = 1 + (np.arange(LENGTH) >= [[40], [LENGTH - 5]]).astype(np.int32)
        # What padding sees is left to the implementation, so it gets no weight.
        real_BL = np.arange(LENGTH) < lengths_B[:, None]
        counted_BL = np.ones_like(real_BL) if self.causal else real_BL

        def total(
            q_BLNH: jax.Array, k_BLKH: jax.Array, v_BLKH: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            y_BLNH = attend(
                q_BLNH,
                k_BLKH,
                v_BLKH,
                causal=self.causal,
                lengths_B=None if self.causal else lengths_B,
                segments_BL=segments_BL if self.segments else None,
            )
            y_BLNH = jnp.where(counted_BL[:, :, None, None], y_BLNH, 0)
            y_BLNH = y_BLNH.astype(jnp.float32)
            return jnp.sum(y_BLNH * weights_BLNH), y_BLNH

        step = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
        gradients, values = jax.device_get(step(q_BLNH, k_BLKH, v_BLKH))
        flat = [np.asarray(each, np.float32).ravel() for each in gradients]
        return np.asarray(values, np.float32).ravel(), np.concatenate(flat)


@functools.cache  # advice on memory asks again, when there may be none to try it with
def _fault(check: AttentionCheck, attend: AttentionFunction) -> str:
    try:
        found = check.run(attend)
    except (RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else ''}"
    exact = check.run(library_attention)
    for name, array, wanted in zip(("values", "gradients"), found, exact, strict=True):
        error = np.linalg.norm(array - wanted) / np.linalg.norm(wanted)
        if not error <= TOLERANCE:  # NaN is no success
            return f"its {name} differ from XLA's by {error:.1%}"
    return ""
