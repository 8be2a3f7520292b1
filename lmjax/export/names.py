"""Parameters of lmjax by the names and in the layouts of exported tensors, both ways.

A table says for each tensor which parameters it holds and how. It lists everything that
its architecture can hold; what a model lacks (a bias, the head of a tied model) is left
out. Export and import read the same table.
"""

import dataclasses
import enum
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import jax
import numpy as np

from lmjax.core import trees
from lmjax.core.errors import UserError
from lmjax.core.types import PyTree

_LAYER = "{layer}"


class Layout(enum.Enum):
    """What a tensor makes of the parameters of one layer.

    Several parameters stand side by side along its outputs, or its only dimension.
    """

    LINEAR = enum.auto()  # kernel [inputs.., outputs..] as [outputs, inputs]
    TRANSPOSED = enum.auto()  # the same as [inputs, outputs], as GPT-2's Conv1D
    FLAT = enum.auto()  # a norm or a bias as one dimension
    AS_IS = enum.auto()
    ROWS = enum.auto()  # one row, or number, for each id: without those of padding


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor, or one per layer where the name says "{layer}".

    Attributes:
      name: of the tensor, without the prefix of its table.
      paths: the parameters, by `trees.path_name`; mostly one.
      layout: how they stand in the tensor.
      num_inputs: leading dimensions of a kernel that are inputs.
    """

    name: str
    paths: tuple[str, ...]
    layout: Layout
    num_inputs: int = 1


@dataclasses.dataclass(frozen=True)
class Table:
    """All tensors of an architecture.

    Attributes:
      tensors: what it can hold.
      prefix: what the names of the backbone begin with, but for those of a model
        without a head, such as "model.".
      heads: names without that prefix.
      ignored: pattern of tensors without parameters, which old files hold.
    """

    tensors: tuple[Tensor, ...]
    prefix: str = ""
    heads: tuple[str, ...] = ()
    ignored: str = r"(?!)"

    def full_name(self, tensor: Tensor) -> str:
        """The tensor's name in a model with a head."""
        return tensor.name if tensor.name in self.heads else self.prefix + tensor.name


class Weights(Protocol):
    """Tensors of a folder, read one by one.

    Attributes:
      shapes: of all of them, by name.
    """

    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray: ...


def linear(name: str, path: str, *, num_inputs: int = 1) -> tuple[Tensor, Tensor]:
    """Weight and bias of a torch Linear that holds one `models.linear.Linear`."""
    return (
        Tensor(f"{name}.weight", (f"{path}/kernel",), Layout.LINEAR, num_inputs),
        Tensor(f"{name}.bias", (f"{path}/bias",), Layout.FLAT),
    )


def conv1d(name: str, *paths: str, num_inputs: int = 1) -> tuple[Tensor, Tensor]:
    """Weight and bias of GPT-2's Conv1D that holds these projections side by side."""
    kernels = tuple(f"{path}/kernel" for path in paths)
    biases = tuple(f"{path}/bias" for path in paths)
    return (
        Tensor(f"{name}.weight", kernels, Layout.TRANSPOSED, num_inputs),
        Tensor(f"{name}.bias", biases, Layout.FLAT),
    )


def norm(name: str, path: str) -> tuple[Tensor, Tensor]:
    """Gain and bias of a norm."""
    return (
        Tensor(f"{name}.weight", (f"{path}/scale",), Layout.FLAT),
        Tensor(f"{name}.bias", (f"{path}/bias",), Layout.FLAT),
    )


# Llama, Qwen3 (with norms of queries and keys) and Arcee (without a gate).
LLAMA = Table(
    (
        Tensor("embed_tokens.weight", ("vocabulary/table",), Layout.ROWS),
        *norm("layers.{layer}.input_layernorm", "blocks/attention_norm"),
        *linear("layers.{layer}.self_attn.q_proj", "blocks/attention/query"),
        *linear("layers.{layer}.self_attn.k_proj", "blocks/attention/key"),
        *linear("layers.{layer}.self_attn.v_proj", "blocks/attention/value"),
        *linear(
            "layers.{layer}.self_attn.o_proj", "blocks/attention/output", num_inputs=2
        ),
        *norm("layers.{layer}.self_attn.q_norm", "blocks/attention/query_norm"),
        *norm("layers.{layer}.self_attn.k_norm", "blocks/attention/key_norm"),
        *norm("layers.{layer}.post_attention_layernorm", "blocks/mlp_norm"),
        *linear("layers.{layer}.mlp.gate_proj", "blocks/mlp/gate"),
        *linear("layers.{layer}.mlp.up_proj", "blocks/mlp/up"),
        *linear("layers.{layer}.mlp.down_proj", "blocks/mlp/down"),
        *norm("norm", "final_norm"),
        Tensor("lm_head.weight", ("vocabulary/head",), Layout.ROWS),
    ),
    prefix="model.",
    heads=("lm_head.weight",),
    ignored=r".*\.rotary_emb\.inv_freq",
)
GPT2 = Table(
    (
        Tensor("wte.weight", ("vocabulary/table",), Layout.ROWS),
        Tensor("wpe.weight", ("positions/table",), Layout.AS_IS),
        *norm("h.{layer}.ln_1", "blocks/attention_norm"),
        *conv1d(
            "h.{layer}.attn.c_attn",
            "blocks/attention/query",
            "blocks/attention/key",
            "blocks/attention/value",
        ),
        *conv1d("h.{layer}.attn.c_proj", "blocks/attention/output", num_inputs=2),
        *norm("h.{layer}.ln_2", "blocks/mlp_norm"),
        *conv1d("h.{layer}.mlp.c_fc", "blocks/mlp/up"),
        *conv1d("h.{layer}.mlp.c_proj", "blocks/mlp/down"),
        *norm("ln_f", "final_norm"),
        Tensor("lm_head.weight", ("vocabulary/head",), Layout.ROWS),
    ),
    prefix="transformer.",
    heads=("lm_head.weight",),
    ignored=r".*\.attn\.(bias|masked_bias)",
)


def unheld(table: Table, shapes: PyTree) -> list[str]:
    """Parameters of a model that no tensor of the table holds."""
    held = {path for tensor in table.tensors for path in tensor.paths}
    return [path for path in _flat(shapes) if path not in held]


def to_tensors(
    table: Table, params: PyTree, *, num_ids: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and tensors of a model, in its own dtype, one after another.

    Args:
      num_ids: rows of the vocabulary without padding.

    Raises:
      ValueError: the table cannot hold all of the parameters.
    """
    if missing := unheld(table, params):
        raise ValueError(f"no tensor holds {', '.join(missing)}")
    flat = _flat(params)
    for tensor, layer in _instances(table, flat):
        parts = [np.asarray(flat[path]) for path in tensor.paths]
        if layer is not None:
            parts = [part[layer] for part in parts]
        yield _name(table, tensor, layer), _pack(tensor, parts, num_ids)


def tensor_shapes(
    table: Table, shapes: PyTree, *, num_ids: int
) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a model whose parameters have these shapes."""
    flat, found = _flat(shapes), {}
    for tensor, layer in _instances(table, flat):
        parts = [_layer_shape(flat[path].shape, layer) for path in tensor.paths]
        found[_name(table, tensor, layer)] = _packed_shape(tensor, parts, num_ids)
    return found


def from_tensors(
    table: Table,
    weights: Weights,
    shapes: PyTree,
    *,
    num_ids: int,
    where: str,
) -> PyTree:
    """Parameters of these shapes, float32, from the tensors of a folder.

    Tensors may lack the prefix of the table. A head that a tied model doesn't need is
    left out if it equals the embedding.

    Args:
      shapes: of the model's parameters; rows for padding are filled with zeros.
      num_ids: rows of the vocabulary without padding.

    Raises:
      UserError: a tensor is missing, surplus, or of a wrong shape; `where` says where.
    """
    wanted = tensor_shapes(table, shapes, num_ids=num_ids)
    names = _match(table, weights, wanted, where)
    flat = _flat(shapes)
    arrays = {path: np.zeros(leaf.shape, np.float32) for path, leaf in flat.items()}
    for tensor, layer in _instances(table, flat):
        values = weights.read(names[_name(table, tensor, layer)]).astype(np.float32)
        targets = [
            arrays[path] if layer is None else arrays[path][layer]
            for path in tensor.paths
        ]
        _unpack(tensor, values, targets, num_ids)
    return trees.map_named(lambda path, _: arrays[path], shapes)


def _flat(tree: PyTree) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {trees.path_name(path): leaf for path, leaf in leaves}


def _instances(
    table: Table, flat: Mapping[str, jax.Array]
) -> Iterator[tuple[Tensor, int | None]]:
    """Each tensor that the model has, with each of its layers."""
    for tensor in table.tensors:
        present = [path in flat for path in tensor.paths]
        if not any(present):
            continue
        if not all(present):
            raise ValueError(f"{tensor.name} needs all of {', '.join(tensor.paths)}")
        if _LAYER not in tensor.name:
            yield tensor, None
            continue
        for layer in range(flat[tensor.paths[0]].shape[0]):
            yield tensor, layer


def _name(table: Table, tensor: Tensor, layer: int | None) -> str:
    name = table.full_name(tensor)
    return name if layer is None else name.replace(_LAYER, str(layer))


def _layer_shape(shape: Sequence[int], layer: int | None) -> tuple[int, ...]:
    return tuple(shape if layer is None else shape[1:])


def _matrix(shape: Sequence[int], num_inputs: int) -> tuple[int, int]:
    """Inputs and outputs of a kernel."""
    return math.prod(shape[:num_inputs]), math.prod(shape[num_inputs:])


def _packed_shape(
    tensor: Tensor, parts: Sequence[tuple[int, ...]], num_ids: int
) -> tuple[int, ...]:
    match tensor.layout:
        case Layout.LINEAR | Layout.TRANSPOSED:
            matrices = [_matrix(shape, tensor.num_inputs) for shape in parts]
            inputs, outputs = matrices[0][0], sum(out for _, out in matrices)
            straight = tensor.layout is Layout.TRANSPOSED
            return (inputs, outputs) if straight else (outputs, inputs)
        case Layout.FLAT:
            return (sum(map(math.prod, parts)),)
        case Layout.AS_IS:
            return parts[0]
        case Layout.ROWS:
            return (num_ids, *parts[0][1:])


def _pack(tensor: Tensor, parts: Sequence[np.ndarray], num_ids: int) -> np.ndarray:
    match tensor.layout:
        case Layout.LINEAR | Layout.TRANSPOSED:
            matrices = [
                part.reshape(_matrix(part.shape, tensor.num_inputs)) for part in parts
            ]
            whole = np.concatenate(matrices, axis=1)
            return whole if tensor.layout is Layout.TRANSPOSED else whole.T
        case Layout.FLAT:
            return np.concatenate([part.reshape(-1) for part in parts])
        case Layout.AS_IS:
            return parts[0]
        case Layout.ROWS:
            return parts[0][:num_ids]


def _unpack(
    tensor: Tensor, values: np.ndarray, targets: Sequence[np.ndarray], num_ids: int
) -> None:
    """Writes a tensor into the parameters that it holds, the inverse of `_pack`."""
    match tensor.layout:
        case Layout.LINEAR | Layout.TRANSPOSED:
            whole = values if tensor.layout is Layout.TRANSPOSED else values.T
            sizes = [_matrix(part.shape, tensor.num_inputs)[1] for part in targets]
        case Layout.FLAT:
            whole, sizes = values, [part.size for part in targets]
        case Layout.AS_IS:
            targets[0][...] = values
            return
        case Layout.ROWS:
            targets[0][:num_ids] = values
            return
    ends = np.cumsum(sizes)[:-1]
    for target, piece in zip(targets, np.split(whole, ends, axis=-1), strict=True):
        target[...] = piece.reshape(target.shape)


def _match(
    table: Table,
    weights: Weights,
    wanted: Mapping[str, tuple[int, ...]],
    where: str,
) -> dict[str, str]:
    """The name in the folder of each tensor that is wanted."""
    by_bare_name = {name.removeprefix(table.prefix): name for name in weights.shapes}
    names = {}
    for name in wanted:
        bare = name.removeprefix(table.prefix)
        if bare in by_bare_name:
            names[name] = by_bare_name[bare]
    problems = [f"{name} is missing" for name in wanted if name not in names]
    for name in sorted(weights.shapes.keys() - names.values()):
        if not re.fullmatch(table.ignored, name) and not _is_tied(
            table, weights, names, name
        ):
            problems.append(f"{name} has no place in the model")
    for name, shape in wanted.items():
        if name in names and (found := tuple(weights.shapes[names[name]])) != shape:
            problems.append(f"{names[name]} is {found}, must be {shape}")
    if problems:
        raise UserError(
            f"the weights do not fit config.json: {problems[0]}"
            + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""),
            where=where,
            remedy="fetch or save the folder again: its config.json and its weights "
            "are of different models, or it was not written whole",
        )
    return names


def _is_tied(
    table: Table, weights: Weights, names: Mapping[str, str], name: str
) -> bool:
    """Whether this is the head of a tied model, and no other than its embedding.

    Args:
      names: in the folder, of tensors that the model has.
    """
    roles = {tensor.paths[0]: table.full_name(tensor) for tensor in table.tensors}
    head, embedding = roles["vocabulary/head"], roles["vocabulary/table"]
    if name != head or head in names or embedding not in names:
        return False
    return np.array_equal(weights.read(name), weights.read(names[embedding]))
