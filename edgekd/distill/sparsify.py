"""2:4 masks: chosen by NVIDIA Model Optimizer, proven here.

Model Optimizer works on a copy of the network and only its masks are taken, so none of its dynamic
classes is in what trains or ships. It skips a layer it does not like with a warning and an all-ones
mask; therefore each planned layer is checked: a mask is there, it is exactly half zeros in every
group of four along k, and it keeps the larger magnitudes.
"""

from __future__ import annotations

import contextlib
import copy
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


def masks(model: nn.Module, rows: Sequence[LayerPlan]) -> dict[str, Tensor]:
    """Magnitude 2:4 masks for every layer planned for 2:4.

    Args:
        model: The dense network; not changed.
        rows: The layer plan.

    Returns:
        {layer: bool[weight shape]}, exactly two of each four along k.

    Raises:
        ContractError: Quantizers are already attached (masks come first), or a planned layer got no
            mask, an all-ones mask, or one that is not 2:4.
    """
    planned = [row.layer for row in rows if row.sparse]
    if not planned:
        return {}
    done = [name for name, _ in model.named_modules() if name.endswith("_quantizer")]
    if done:
        raise ContractError(
            f"sparsify: the network is already quantized ({len(done)} quantizers, first "
            f"{done[0]}); masks are chosen first, on float weights"
        )
    with quiet():
        import modelopt.torch.sparsity as mts

        # Planned layers by name: its own default leaves out every layer named like *lm_head*.
        rules: dict[str, Any] = {
            kind: {layer: {} for layer in planned} for kind in ("nn.Linear", "nn.Conv2d")
        }
        pruned = mts.sparsify(copy.deepcopy(model), [("sparse_magnitude", rules)])
    found = {
        name: getattr(module, "_weight_mask", None)
        for name, module in pruned.named_modules()
        if name in planned
    }
    proven = {layer: _proven(layer, found.get(layer), model) for layer in planned}
    for row in rows:
        if row.sparse and row.tied_to and not torch.equal(proven[row.layer], proven[row.tied_to]):
            raise ContractError(
                f"sparsify: {row.layer} and {row.tied_to} are one weight but got two masks"
            )
    return proven


def as_matrix(weight: Tensor) -> NDArray[np.float32]:
    """Weight as float32[n, k] with the axis that 2:4 runs along last and contiguous."""
    array = weight.detach().cpu().float().numpy()
    return sparse24.conv_as_matrix(array) if array.ndim == 4 else array


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep a library's chatter off stdout, which belongs to results, and its warnings off stderr.

    What they warn of is checked here and raised.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _proven(layer: str, mask: Tensor | None, model: nn.Module) -> Tensor:
    if mask is None or bool(mask.all()):
        state = "no mask" if mask is None else "an all-ones mask"
        raise ContractError(
            f"sparsify: {layer} is planned for 2:4 but Model Optimizer gave it {state}; add it to "
            "sparsity.exclude, or make n a multiple of 8 and k of 16"
        )
    kept = as_matrix(mask).reshape(-1, 4).sum(axis=1)
    if not (kept == 2).all():
        raise ContractError(
            f"sparsify: the mask of {layer} keeps {int((kept != 2).sum())} of {len(kept)} groups "
            "with other than 2 of 4 weights"
        )
    weight = model.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    magnitude = np.abs(as_matrix(weight)).reshape(-1, 4)
    chosen = as_matrix(mask).reshape(-1, 4) > 0
    best = np.sort(magnitude, axis=1)[:, 2:].sum(axis=1)
    if not np.allclose((magnitude * chosen).sum(axis=1), best, rtol=1e-5, atol=1e-7):
        raise ContractError(f"sparsify: the mask of {layer} does not keep the larger magnitudes")
    return mask.detach().clone().bool()
