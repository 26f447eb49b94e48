"""SparseGPT for 2:4: masks by what a layer's output loses, and weights that make up for it.

Frantar and Alistarh (arXiv 2301.00774), algorithm 1 in its n:m form. A layer's squared output error
on calibration inputs X is a quadratic of its weights, with Hessian H = 2 X^T X for every row.
Columns are treated from left to right. At every fourth one, the two of the next four whose removal
costs least go, by w^2 / [H^-1]_jj with the columns to the left held fixed; what a removed weight
did is then spread over the columns to its right::

    W[:, j:] -= W[:, j] / [H^-1]_jj * [H^-1]_j,j:

The inverses of all trailing parts of H are one Cholesky factor (algorithm 1, line 3), so no matrix
is inverted twice, and columns beyond a block are updated a block at a time. It runs in float64: H
is near singular wherever inputs are redundant.

Choices. *Order*: the method is sequential; layers of one block (`structure.blocks`; outside of
them every layer is its own) share a pass over the calibration data, with everything before it
pruned already, as in the authors' code. *Target*: what the layer's dense weights answer on those
inputs, not on the dense network's. *Damping*: 1% of the mean of H's diagonal. *Convolutions*:
im2col with input channels fastest (`sparse24.conv_as_matrix`), groups one by one. *Shared weights*:
one H over the inputs of all who hold them. *Shared patterns* (V:2:4): the cost is summed over the
rows.

Model Optimizer's mode of this name keeps the mask and throws the new weights away, which is why it
is not used here. Left out: choosing quantized values at the same time (algorithm 1, line 16).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from edgekd import sparse24, structure
from edgekd.distill import sparsify, watch
from edgekd.eligible import LayerPlan
from edgekd.errors import ContractError

COLUMNS = 128  # of a block; a multiple of 4. It changes the speed and not the result.
DAMPING = 0.01
# Elements of the unfolded input that are held at a time.
_UNFOLDED = 1 << 25


def prune(
    model: nn.Module,
    rows: Sequence[LayerPlan],
    run: Callable[[nn.Module], None],
    pattern_rows: int = 1,
) -> dict[str, Tensor]:
    """Prune every layer planned for 2:4, in place.

    Args:
        model: The dense float network; weights of planned layers change, what is pruned is 0.
        rows: The layer plan, in forward order.
        run: Passes the calibration batches through the network it is given.
        pattern_rows: Output rows that share one pattern.

    Returns:
        {layer: bool[weight shape]}, exactly two of each four along k.

    Raises:
        ContractError: Quantizers are already attached, calibration never reached a planned layer or
            gave it what is not finite, or its n is not a multiple of `pattern_rows`.
    """
    planned = [row for row in rows if row.sparse]
    if not planned:
        return {}
    sparsify.float_weights(model)
    for row in planned:
        sparsify.require_rows(row.layer, model.get_submodule(row.layer), pattern_rows)
    masks: dict[str, Tensor] = {}
    for group in _passes(model, planned):
        seen = hessians(model, group, run)
        for owner, layers in group.items():
            mask = _prune_layer(owner, model.get_submodule(owner), seen[owner], pattern_rows)
            masks.update({layer: mask.clone() for layer in layers})
    return masks


def compensated(weight: Tensor, hessian: Tensor, pattern_rows: int = 1) -> tuple[Tensor, Tensor]:
    """Algorithm 1 on one matrix.

    Args:
        weight: float[n, k], k a multiple of 4, n one of `pattern_rows`.
        hessian: float64[k, k], symmetric, positive semidefinite; damped here.
        pattern_rows: Rows that share one pattern.

    Returns:
        The pruned weights float64[n, k], and their mask bool[n, k].
    """
    new = weight.double().clone()
    mask = torch.zeros_like(new, dtype=torch.bool)
    n, k = new.shape
    inverse = _factor(hessian)
    for start in range(0, k, COLUMNS):
        stop = min(start + COLUMNS, k)
        errors = torch.zeros((n, stop - start), dtype=torch.float64, device=new.device)
        for j in range(start, stop):
            if j % sparse24.GROUP == 0:
                four = slice(j, j + sparse24.GROUP)
                cost = (new[:, four] / inverse.diagonal()[four]).square()
                shared = cost.reshape(n // pattern_rows, pattern_rows, -1).sum(dim=1)
                # A stable order: among equals the lower index stays, as in `sparse24.mask`.
                kept = shared.argsort(dim=1, descending=True, stable=True)[:, : sparse24.KEPT]
                chosen = torch.zeros_like(shared, dtype=torch.bool).scatter_(1, kept, True)
                mask[:, four] = chosen.repeat_interleave(pattern_rows, dim=0)
            gone = torch.where(mask[:, j], 0.0, new[:, j] / inverse[j, j])
            new[:, j:stop] -= gone[:, None] * inverse[j, j:stop]
            errors[:, j - start] = gone
        new[:, stop:] -= errors @ inverse[start:stop, stop:]
    return new * mask, mask


def hessians(
    model: nn.Module, holders: Mapping[str, Sequence[str]], run: Callable[[nn.Module], None]
) -> dict[str, Tensor]:
    """Hessians of weights' output errors, from one pass over the calibration data.

    Args:
        model: The float network; left as it was.
        holders: By a name for each weight, the Linear or Conv2d modules that hold it.
        run: Passes the calibration batches through the network it is given.

    Returns:
        {name: float64[groups, k, k]}, 2 X^T X over the number of X's rows, X the inputs of all
        holders, its columns as in `sparse24.conv_as_matrix`.

    Raises:
        ContractError: No input reached a layer, or one that is not finite.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def look(layer: str, module: nn.Module, given: Tensor, _output: Tensor) -> None:
        for x in _as_rows(module, given.detach()):
            product = torch.matmul(x.transpose(1, 2), x).double()
            sums[layer] = sums[layer] + product if layer in sums else product
            counts[layer] = counts.get(layer, 0) + x.shape[1]

    layers = [layer for held in holders.values() for layer in held]
    watch.runs(model, layers, run, look)
    for layer in layers:
        if layer not in sums:
            raise ContractError(
                f"sparsegpt: no calibration input reached {layer}, expected some: exclude it from "
                "the sparsity plan, or choose sparsity.method = 'magnitude'"
            )
        if not bool(sums[layer].isfinite().all()):
            raise ContractError(
                f"sparsegpt: the inputs of {layer} hold NaN or infinity, expected finite numbers: "
                "look for bad values in the data, or for a layer before it that overflows"
            )
    found = {}
    for name, held in holders.items():
        total = torch.stack([sums[layer] for layer in held]).sum(dim=0)
        found[name] = 2 * total / sum(counts[layer] for layer in held)
    return found


def _passes(model: nn.Module, planned: Sequence[LayerPlan]) -> list[dict[str, list[str]]]:
    """Which weights share a pass over the data: {their first layer: all that hold it}, in order."""
    blocks = structure.blocks(model)
    groups: list[tuple[str, dict[str, list[str]]]] = []
    for row in planned:
        if row.tied_to:
            holder = next(group for _, group in groups if row.tied_to in group)
            holder[row.tied_to].append(row.layer)
            continue
        block = next((name for name in blocks if row.layer.startswith(f"{name}.")), row.layer)
        if not groups or groups[-1][0] != block:
            groups.append((block, {}))
        groups[-1][1][row.layer] = [row.layer]
    return [group for _, group in groups]


def _prune_layer(layer: str, module: nn.Module, hessian: Tensor, pattern_rows: int) -> Tensor:
    """New weights in a module, in place; its mask."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    matrix = weight.detach()
    if matrix.ndim == 4:
        matrix = matrix.movedim(1, -1).reshape(len(matrix), -1)
    parts = [
        compensated(part, each, pattern_rows)
        for part, each in zip(matrix.chunk(len(hessian)), hessian, strict=True)
    ]
    new, mask = (torch.cat(each) for each in zip(*parts, strict=True))
    mask = sparsify.from_matrix(mask, weight.shape)
    sparsify.prove(layer, mask, pattern_rows)
    with torch.no_grad():
        weight.copy_(sparsify.from_matrix(new, weight.shape))
    sparse24.check(sparsify.as_matrix(weight), f"sparsegpt: {layer}")
    return mask


def _factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor U of the damped H^-1 = U^T U, float64[k, k].

    Its row j over U_jj is row j of the inverse of H's part from j on, over that one's diagonal, and
    U_jj^2 is that diagonal.
    """
    damping = DAMPING * float(hessian.diagonal().mean())
    # Inputs that are always zero tell nothing: any diagonal leaves magnitude to decide.
    damped = hessian + torch.eye(len(hessian), device=hessian.device) * (damping or 1.0)
    lower = torch.linalg.cholesky(damped)
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)  # type: ignore[no-any-return]


def _as_rows(module: nn.Module, given: Tensor) -> Sequence[Tensor]:
    """A layer's input as the rows its weights meet, float32[groups, rows, k], in pieces."""
    if not isinstance(module, nn.Conv2d):
        return [given.reshape(1, -1, given.shape[-1]).float()]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = nn.functional.pad(given.float(), module._reversed_padding_repeated_twice, mode=mode)
    size = (padded.shape[2] * padded.shape[3] * module.weight[0].numel()) * module.groups
    examples = max(1, _UNFOLDED // size)
    return [_unfolded(module, piece) for piece in torch.split(padded, examples)]


def _unfolded(module: nn.Conv2d, padded: Tensor) -> Tensor:
    """im2col, float32[groups, n * positions, r * s * c]."""
    area = module.kernel_size[0] * module.kernel_size[1]
    columns = nn.functional.unfold(
        padded, module.kernel_size, dilation=module.dilation, stride=module.stride
    )
    examples, _, positions = columns.shape
    split = columns.reshape(examples, module.groups, -1, area, positions)
    return split.permute(1, 0, 4, 3, 2).reshape(module.groups, examples * positions, -1)
