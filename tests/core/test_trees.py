"""Path names, masks, counts and bytes of nested parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.core import trees

TREE = {
    "blocks": {"query": {"kernel": np.ones((2, 3), np.float32)}},
    "norm": {"scale": np.ones(4, np.float16)},
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Pair:
    first: list
    second: tuple


def test_path_names_join_keys_fields_and_indices() -> None:
    names = trees.map_named(lambda name, _: name, TREE)
    assert names["blocks"]["query"]["kernel"] == "blocks/query/kernel"
    pair = trees.map_named(lambda name, _: name, Pair([0, 0], ({"x": 0},)))
    assert pair.first == ["first/0", "first/1"]
    assert pair.second[0]["x"] == "second/0/x"


def test_masks_search_the_whole_path_name() -> None:
    chosen = trees.mask(TREE, r"query|scale$")
    assert chosen == {"blocks": {"query": {"kernel": True}}, "norm": {"scale": True}}
    assert not any(jax.tree.leaves(trees.mask(TREE, r"^kernel")))


def test_counts_and_bytes_need_shapes_alone() -> None:
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))
    for tree in (TREE, shapes):
        assert trees.count(tree) == 10
        assert trees.count(tree, "kernel$") == 6
        assert trees.num_bytes(tree) == 6 * 4 + 4 * 2
