"""Everything a step reads and writes, and its sharded beginning."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lmjax.core.types import PyTree
from lmjax.parallel import rules
from lmjax.train.guard import Guard


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The whole state of a run on the device.

    Attributes:
      step: int32, optimizer steps done.
      params: parameters, float32.
      opt_state: state of the optax optimizer.
      ema: moving average of the parameters; an empty dict when it is off.
      guard: what the guard remembers, see `guard.Memory`.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
    ema: PyTree
    guard: PyTree = dataclasses.field(default_factory=dict)

    @property
    def evaluation_params(self) -> PyTree:
        """What evaluation and generation use: the average where there is one."""
        return self.ema or self.params


@dataclasses.dataclass(frozen=True)
class StateMaker:
    """Makes the initial state directly in its shardings.

    Attributes:
      init: fresh parameters from a key.
      names: logical dimension names of each parameter.
      optimizer: the optax optimizer.
      use_ema: whether the state carries an average.
      mesh: where the arrays live.
      guard: which updates are left out.
      offload: whether the optimizer's state lies in the hosts' memory, see
        `rules.on_host`.
    """

    init: Callable[[jax.Array], PyTree]
    names: PyTree
    optimizer: optax.GradientTransformation
    use_ema: bool
    mesh: Mesh
    guard: Guard = dataclasses.field(default_factory=Guard)
    offload: bool = False

    @functools.cached_property
    def _fresh(self) -> Callable[[jax.Array], TrainState]:
        """Makes the state, on whatever device; traced once for all who ask."""

        @jax.jit
        def fresh(key: jax.Array) -> TrainState:
            params = self.init(key)
            return TrainState(
                step=jnp.zeros((), jnp.int32),
                params=params,
                opt_state=self.optimizer.init(params),
                ema=jax.tree.map(jnp.copy, params) if self.use_ema else {},
                guard=self.guard.start(),
            )

        return fresh

    def abstract(self) -> TrainState:
        """Shapes, dtypes and shardings of the state; allocates nothing.

        Shardings are derived from the arrays themselves, the optimizer's moments from
        the parameters they belong to.
        """
        return self._abstract

    @functools.cached_property
    def _abstract(self) -> TrainState:
        shapes = jax.eval_shape(self._fresh, jax.random.key(0))
        params = rules.param_shardings(shapes.params, self.names, self.mesh)
        moments = rules.optimizer_shardings(shapes.opt_state, params, self.mesh)
        if self.offload:
            moments = rules.on_host(moments, shapes.opt_state)
        shardings = TrainState(
            step=rules.replicated(self.mesh),
            params=params,
            opt_state=moments,
            ema=params if self.use_ema else {},
            guard=jax.tree.map(lambda _: rules.replicated(self.mesh), shapes.guard),
        )
        return jax.tree.map(_with_sharding, shapes, shardings)

    def make(self, key: jax.Array) -> TrainState:
        """The initial state."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract())
        return jax.jit(self._fresh, out_shardings=shardings)(key)


def _with_sharding(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
