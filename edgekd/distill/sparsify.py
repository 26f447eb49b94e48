"""2:4 masks by magnitude: chosen by NVIDIA Model Optimizer, proven here.

Model Optimizer works on a copy of the network and only its masks are taken, so none of its dynamic
classes is in what trains or ships. It skips a layer it does not like with a warning and an all-ones
mask; therefore each planned layer is checked: a mask is there, it is exactly half zeros in every
group of four along k, and it keeps the larger magnitudes. It knows no patterns that rows share:
those are `sparse24.mask`'s own, with which it agrees where both apply (tested).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd import sparse24
from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError


def masks(model: nn.Module, rows: Sequence[LayerPlan], pattern_rows: int = 1) -> dict[str, Tensor]:
    """Magnitude 2:4 masks for every layer planned for 2:4.

    Args:
        model: The dense network; not changed.
        rows: The layer plan.
        pattern_rows: Output rows that share one pattern.

    Returns:
        {layer: bool[weight shape]}, exactly two of each four along k.

    Raises:
        ContractError: Quantizers are already attached (masks come first), a planned layer got no
            mask, an all-ones mask, or one that is not 2:4, or its n is not a multiple of
            `pattern_rows`.
    """
    planned = [row.layer for row in rows if row.sparse]
    if not planned:
        return {}
    float_weights(model)
    find = _by_model_optimizer if pattern_rows == 1 else functools.partial(_shared, pattern_rows)
    found = find(model, planned)
    for layer in planned:
        mask = found.get(layer)
        if mask is None or bool(mask.all()):
            state = "no mask" if mask is None else "an all-ones mask"
            raise ContractError(
                f"sparsify: {layer} is planned for 2:4 but Model Optimizer gave it {state}; add it "
                "to sparsity.exclude, or make n a multiple of 8 and k of 16"
            )
        prove(layer, mask, pattern_rows)
        _keeps_the_larger(layer, mask, model, pattern_rows)
    proven = {layer: found[layer].detach().clone().bool() for layer in planned}
    for row in rows:
        if row.sparse and row.tied_to and not torch.equal(proven[row.layer], proven[row.tied_to]):
            raise ContractError(
                f"sparsify: {row.layer} and {row.tied_to} are one weight but got two masks"
            )
    return proven


def prove(layer: str, mask: Tensor, pattern_rows: int = 1) -> None:
    """Assert that a mask is exactly 2:4, and that rows share patterns as asked.

    Raises:
        ContractError: It is not.
    """
    matrix = as_matrix(mask)
    kept = matrix.reshape(-1, sparse24.GROUP).sum(axis=1)
    if not (kept == sparse24.KEPT).all():
        raise ContractError(
            f"sparsify: the mask of {layer} keeps {int((kept != 2).sum())} of {len(kept)} groups "
            "with other than 2 of 4 weights"
        )
    prove_rows(layer, mask, pattern_rows)


def prove_rows(layer: str, mask: Tensor, pattern_rows: int) -> None:
    """Assert that each run of so many rows has one pattern.

    Raises:
        ContractError: One has several, or n is not a multiple of `pattern_rows`.
    """
    matrix = as_matrix(mask)
    sparse24.require_rows(len(matrix), pattern_rows, layer)
    tiles = matrix.reshape(len(matrix) // pattern_rows, pattern_rows, -1)
    torn = (tiles != tiles[:, :1]).any(axis=(1, 2))
    if torn.any():
        raise ContractError(
            f"sparsify: in the mask of {layer}, {int(torn.sum())} of {len(tiles)} runs of "
            f"{pattern_rows} rows have more than one pattern, expected one (sparsity.pattern_rows)"
        )


def float_weights(model: nn.Module) -> None:
    """Assert that a network is not quantized yet: masks are chosen on float weights.

    Raises:
        ContractError: It is.
    """
    done = [name for name, _ in model.named_modules() if name.endswith("_quantizer")]
    if done:
        raise ContractError(
            f"sparsify: the network is already quantized ({len(done)} quantizers, first "
            f"{done[0]}); masks are chosen first, on float weights"
        )


def require_rows(layer: str, module: nn.Module, pattern_rows: int) -> None:
    """Raise unless the output rows of a layer, or of each of its groups, fall into runs of V."""
    groups = int(getattr(module, "groups", 1))
    assert isinstance(module.weight, Tensor)
    sparse24.require_rows(len(module.weight) // groups, pattern_rows, layer)


def as_matrix(weight: Tensor) -> NDArray[np.float32]:
    """Weight as float32[n, k] with the axis that 2:4 runs along last and contiguous."""
    array = weight.detach().cpu().float().numpy()
    return sparse24.conv_as_matrix(array) if array.ndim == 4 else array


def from_matrix(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """What [n, k] is as a weight of a shape: the inverse of `as_matrix`, any dtype."""
    if len(shape) == 2:
        return matrix
    return matrix.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep a library's chatter off stdout, which belongs to results, and its warnings off stderr.

    What they warn of is checked here and raised.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _shared(pattern_rows: int, model: nn.Module, planned: Sequence[str]) -> dict[str, Tensor]:
    """Masks that runs of rows share."""
    found = {}
    for layer in planned:
        module = model.get_submodule(layer)
        require_rows(layer, module, pattern_rows)
        weight = module.weight
        assert isinstance(weight, Tensor)
        kept = torch.from_numpy(sparse24.mask(as_matrix(weight), pattern_rows))
        found[layer] = from_matrix(kept, weight.shape).to(weight.device)
    return found


def _by_model_optimizer(model: nn.Module, planned: Sequence[str]) -> dict[str, Tensor]:
    """The masks that Model Optimizer gave, where it gave one."""
    with quiet():
        import modelopt.torch.sparsity as mts

        # Planned layers by name: its own default leaves out every layer named like *lm_head*.
        rules: dict[str, Any] = {
            kind: {layer: {} for layer in planned} for kind in ("nn.Linear", "nn.Conv2d")
        }
        pruned = mts.sparsify(copy.deepcopy(model), [("sparse_magnitude", rules)])
    found = {name: getattr(pruned.get_submodule(name), "_weight_mask", None) for name in planned}
    return {name: mask for name, mask in found.items() if isinstance(mask, Tensor)}


def _keeps_the_larger(layer: str, mask: Tensor, model: nn.Module, pattern_rows: int) -> None:
    weight = model.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    magnitude, chosen = np.abs(as_matrix(weight)), as_matrix(mask) > 0
    shape = (len(magnitude) // pattern_rows, pattern_rows, -1, sparse24.GROUP)
    shared = magnitude.reshape(shape).sum(axis=1)
    best = np.sort(shared, axis=-1)[..., sparse24.KEPT :].sum(axis=-1)
    kept = (magnitude * chosen).reshape(shape).sum(axis=(1, 3))
    if not np.allclose(kept, best, rtol=1e-5, atol=1e-7):
        raise ContractError(f"sparsify: the mask of {layer} does not keep the larger magnitudes")
