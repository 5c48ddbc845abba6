"""Sparse values while a graph is made canonical: constants that are kept so, such as the matrix of a graph's edges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.common.tensors import dense
from fxlrp.passes.building import Builder
from fxlrp.passes.refusals import called

SPARSE = "fxlrp sparse"
"""Marks a node of the canonical graph whose value is sparse."""

_MAKERS = ("sparse_coo_tensor", "sparse_csr_tensor", "sparse_csc_tensor", "to_sparse", "_sparse_coo_tensor")
"""What the names of functions and methods that give sparse values begin with."""
_LEAVES = frozenset({
    "to_dense", "indices", "values", "_indices", "_values", "_nnz", "crow_indices", "col_indices", "size", "shape",
    "device", "dtype", "dim", "is_coalesced", "sym_size", "numel", "is_sparse", "layout", "_to_dense",
})  # fmt: skip
"""Those that give something else of them."""


def is_sparse(node: fx.Node, args: Any, kwargs: Any) -> bool:
    """Whether a captured call that carries no signal gives a sparse value.

    Args:
        node: the call.
        args: its arguments, as canonical values.
        kwargs: those by name.
    """
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return value.layout is not torch.strided
    name = str(node.args[1]) if node.target is getattr else called(node)
    if name.startswith(_MAKERS):
        return True
    takes = any(isinstance(leaf, fx.Proxy) and SPARSE in leaf.node.meta for leaf in _leaves((args, kwargs)))
    return takes and name not in _LEAVES


def made_dense(value: Any, builder: Builder) -> Any:
    """Arguments of a call that carries signal, in which dense constants stand for sparse ones."""

    def filled(leaf: Any) -> Any:
        if isinstance(leaf, fx.Proxy) and SPARSE in leaf.node.meta:
            return builder.create_proxy("call_function", dense, (leaf,), {})
        return leaf

    return fx.node.map_aggregate(value, filled)


def _leaves(value: Any) -> list[Any]:
    found: list[Any] = []
    fx.node.map_aggregate(value, found.append)
    return found
