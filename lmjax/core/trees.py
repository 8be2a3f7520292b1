"""Pytrees by path name: counts, bytes, and every mask of the project."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
    """A key path as "blocks/attention/query"."""
    parts = []
    for entry in path:
        for attribute in ("key", "name", "idx"):
            if hasattr(entry, attribute):
                parts.append(str(getattr(entry, attribute)))
                break
        else:
            parts.append(str(entry))
    return "/".join(parts)


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """`jax.tree.map` whose function also receives the leaf's path name."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(path_name(path), leaf), tree
    )


def mask(tree: Any, pattern: str) -> Any:
    """True at every leaf whose whole path name contains a match of `pattern`."""
    compiled = re.compile(pattern)
    return map_named(lambda name, _: compiled.search(name) is not None, tree)


def count(tree: Any, pattern: str = "") -> int:
    """Number of array elements in the leaves whose name matches `pattern`."""
    compiled = re.compile(pattern)
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return sum(
        math.prod(leaf.shape)
        for path, leaf in leaves
        if compiled.search(path_name(path))
    )


def num_bytes(tree: Any) -> int:
    """Bytes that the tree's arrays (or ShapeDtypeStructs) take in all."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )
