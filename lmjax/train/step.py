"""The one training step, whatever the objective."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lmjax.core import rng
from lmjax.core.types import LanguageModel, PyTree
from lmjax.data.batch import Batch
from lmjax.objectives.base import Loss, Objective
from lmjax.optim.ema import update_ema
from lmjax.parallel import rules
from lmjax.parallel.rules import ONE_DEVICE, Layout
from lmjax.train import guard as guards
from lmjax.train.guard import Guard, Metrics
from lmjax.train.state import TrainState

# (parameters, batch, draws, dropout key) -> gradients of the summed loss, loss sums.
Gradient = Callable[..., tuple[PyTree, Loss]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainStep:
    """(state, global batch) -> (state, metrics): pure, and a function of the step.

    Attributes:
      bind: parameters -> model.
      objective: what is minimised.
      optimizer: optax optimizer, clipping included.
      schedule: learning rate by step, for the log.
      ema_decay: decay of the moving average; 0 is off.
      num_microbatches: forward passes the batch is cut into; must divide it.
      use_dropout: whether the model gets a dropout key.
      seed: seed of the run.
      total_steps: length of the run, for objectives that change in its course.
      names: logical dimension names of each parameter.
      guard: which updates are left out.
      offload: whether the optimizer's state lies in the hosts' memory, and is brought
        to the devices for the update; where it returns to, `compile` says.
      layout: that of the model. Where it has replicas, each adds up the gradients of
        its own rows, and they meet once a step, not at every pass and every chunk of
        logits. Dropout has one draw for all rows, so it takes a layout without.
    """

    bind: Callable[[PyTree], LanguageModel]
    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    ema_decay: float
    num_microbatches: int
    use_dropout: bool
    seed: int
    total_steps: int
    names: PyTree = dataclasses.field(hash=False)  # a dict, and jit hashes the step
    guard: Guard = dataclasses.field(default_factory=Guard)
    offload: bool = False
    layout: Layout = ONE_DEVICE

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        progress = jnp.minimum(state.step / self.total_steps, 1.0)
        key = rng.stream(self.seed, "train", state.step)
        draws = self.objective.draw(batch, key, progress)
        dropout_key = None
        if self.use_dropout:
            dropout_key = rng.stream(self.seed, "dropout", state.step)
        factor = self._loss_factor(state, batch)
        loss, gradients = self._accumulate(
            state.params, batch, draws, dropout_key, factor
        )
        weight = jnp.maximum(loss.weight, 1.0)
        gradients = jax.tree.map(lambda gradient: gradient / weight, gradients)
        norm = optax.tree.norm(gradients)
        good, memory, judged = self.guard.judge(
            state.guard, loss.total, loss.weight, norm
        )
        old_state = state.opt_state
        if self.offload:
            old_state = jax.device_put(old_state, jax.memory.Space.Device)
        updates, opt_state = self.optimizer.update(gradients, old_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if self.ema_decay:
            ema = update_ema(ema, params, state.step, self.ema_decay)
        before = (state.params, old_state, state.ema)
        params, opt_state, ema = guards.keep_good(
            good, (params, opt_state, ema), before
        )
        metrics = {
            "loss_sum": loss.total,
            "weight": loss.weight,
            "words": jnp.sum(batch.words),
            "bytes": jnp.sum(batch.bytes),
            "gradient_norm": norm,
            "learning_rate": jnp.asarray(self.schedule(state.step), jnp.float32),
            **{f"{name}_sum": value for name, value in loss.metrics.items()},
            **judged,
            **guards.find_culprits(gradients, state.params, self.names),
        }
        return TrainState(state.step + 1, params, opt_state, ema, memory), metrics

    def explain(self, metrics: Mapping[str, Any]) -> str:
        """Why the update of a step with these metrics was left out, in one sentence."""
        return guards.explain(metrics, self.names, num_losses=self.guard.spike_window)

    def compile(self, state: TrainState, batch: Batch, mesh: Mesh) -> Any:
        """The executable for states and batches of these shapes and shardings.

        The state is donated, and returns in the shardings it came in.
        """
        state_shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        batch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=rules.batch_sharding(mesh)
            ),
            batch,
        )
        step = jax.jit(
            self.__call__, donate_argnums=0, out_shardings=(state_shardings, None)
        )
        return step.lower(state, batch).compile()

    def _loss_factor(self, state: TrainState, batch: Batch) -> jax.Array | None:
        """What the summed loss is multiplied by for its gradients in float16.

        The scale is one of the mean loss, as elsewhere. The weight of a microbatch says
        nothing of the whole batch, so its size stands in: a power of two, by which
        nothing is rounded.
        """
        if not self.guard.scales_loss:
            return None
        return state.guard.scale / 2.0 ** (batch.tokens.size.bit_length() - 1)

    def _accumulate(
        self,
        params: PyTree,
        batch: Batch,
        draws: Any,
        dropout_key: jax.Array | None,
        factor: jax.Array | None,
    ) -> tuple[Loss, PyTree]:
        """Loss sums and gradients of the summed loss, over all microbatches.

        The backward pass is that of the loss times `factor`, which is taken out of the
        gradients again once they are float32.
        """

        def total(
            params: PyTree, batch: Batch, draws: Any, key: jax.Array | None
        ) -> tuple[jax.Array, Loss]:
            loss = self.objective.loss(self.bind(params), batch, draws, key)
            return loss.total if factor is None else loss.total * factor, loss

        def gradient(*arguments: Any) -> tuple[PyTree, Loss]:
            gradients, loss = jax.grad(total, has_aux=True)(*arguments)
            if factor is not None:
                gradients = jax.tree.map(lambda leaf: leaf / factor, gradients)
            return gradients, loss

        if self.layout.num_replicas > 1:
            batch, draws = self.layout.split((batch, draws))
            return self._over_replicas(gradient, params, batch, draws, dropout_key)
        return self._over_passes(gradient, params, batch, draws, dropout_key, rows=0)

    def _over_replicas(
        self, gradient: Gradient, params: PyTree, batch: Batch, draws: Any, key: Any
    ) -> tuple[Loss, PyTree]:
        """As `_over_passes`, each replica by itself, and their sum at last."""
        if self.use_dropout:
            raise ValueError("replicas would drop the same: take a layout without")
        mapped = jax.vmap(
            gradient,
            in_axes=(None, 0, 0, None),
            spmd_axis_name=self.layout.replica_axis,
        )

        def apart(*arguments: Any) -> tuple[PyTree, Loss]:
            gradients, loss = mapped(*arguments)
            return self.layout.of_replicas(gradients, self.names), loss

        sums = self._over_passes(apart, params, batch, draws, key, rows=1)
        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), sums)

    def _over_passes(
        self,
        gradient: Gradient,
        params: PyTree,
        batch: Batch,
        draws: Any,
        dropout_key: jax.Array | None,
        *,
        rows: int,
    ) -> tuple[Loss, PyTree]:
        """Sums over all microbatches; the dimension `rows` of arrays is cut."""
        count = self.num_microbatches
        if count == 1:
            gradients, loss = gradient(params, batch, draws, dropout_key)
            return loss, gradients
        keys = None if dropout_key is None else jax.random.split(dropout_key, count)
        microbatches = jax.tree.map(
            lambda leaf: _cut(leaf, count, rows), (batch, draws)
        )

        def add(carry: tuple[Loss, PyTree], inputs: Any) -> tuple[Any, None]:
            (batch, draws), key = inputs
            gradients, loss = gradient(params, batch, draws, key)
            return jax.tree.map(jnp.add, carry, (loss, gradients)), None

        first = jax.tree.map(lambda leaf: leaf[0], (microbatches, keys))
        gradients, loss = jax.eval_shape(gradient, params, *first[0], first[1])
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (loss, gradients)
        )
        return jax.lax.scan(add, zeros, (microbatches, keys))[0]


def _cut(leaf: jax.Array, count: int, rows: int) -> jax.Array:
    """[..., B, ...] -> [count, ..., B / count, ...]: rows of each device in each."""
    shape = leaf.shape
    cut = (*shape[:rows], shape[rows] // count, count, *shape[rows + 1 :])
    return jnp.moveaxis(leaf.reshape(cut), rows + 1, 0)
