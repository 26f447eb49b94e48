"""The canonical form of a network: every product is a Linear or a Conv2d of its own.

torch's MultiheadAttention holds the projections of query, key and value in one packed parameter and
multiplies it by a function call, where no mask and no quantizer can be put and where nothing tells
which third is which. Here each such module is replaced by `Attention`, the same function with four
Linears; names in checkpoints are translated both when a file has the old ones and when it has ours.
The products of attention are written out, not fused: on a CPU that trains faster, and the graph
keeps the MatMul-Softmax-MatMul that TensorRT fuses itself.

A network whose BatchNorm was folded is canonical too: the convolution has a bias, and what is left
in the norm's place is its activation, if it has one.

Left out: ``add_bias_kv`` and ``add_zero_attn`` (no published encoder uses them), nested tensors,
and subclasses with a forward of their own, which the plan then lists as read by other code.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from edgekd.errors import ConfigError, UnsupportedError

Tensors = dict[str, Tensor]
_PARTS = ("q_proj", "k_proj", "v_proj")


class Attention(nn.Module):
    """torch's MultiheadAttention with separate q_proj, k_proj, v_proj and out_proj.

    Takes and returns what it does, under the same argument names.
    """

    # Read by torch's own encoder layers, which then leave their fused path alone.
    in_proj_weight = in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, packed: nn.MultiheadAttention, seen: dict[int, list[nn.Parameter]]) -> None:
        """Take over the sizes and, split, the weights of a packed attention.

        Args:
            packed: What is replaced.
            seen: Parts by the identity of the parameter they came from: a tied one is split once.
        """
        super().__init__()
        self.embed_dim, self.num_heads = packed.embed_dim, packed.num_heads
        self.head_dim = packed.embed_dim // packed.num_heads
        self.kdim, self.vdim = packed.kdim, packed.vdim
        self.dropout, self.batch_first = packed.dropout, packed.batch_first
        weights: Sequence[nn.Parameter | None] = (
            [packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight]
            if packed.in_proj_weight is None
            else _parts(packed.in_proj_weight, seen)
        )
        biases = [None] * 3 if packed.in_proj_bias is None else _parts(packed.in_proj_bias, seen)
        for name, weight, bias in zip(_PARTS, weights, biases, strict=True):
            assert weight is not None
            self.add_module(name, _linear(weight, bias))
        out = packed.out_proj
        self.out_proj = _linear(cast(nn.Parameter, out.weight), out.bias)
        self.train(packed.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of queries to keys.

        Args:
            query: float32[tokens, batch, embed_dim], or batch first, or without a batch.
            key: float32[sources, batch, kdim], alike.
            value: float32[sources, batch, vdim], alike.
            key_padding_mask: bool[batch, sources], True where a key is left out; floats are added.
            need_weights: Whether to return the attention weights too.
            attn_mask: bool or float[tokens, sources] or [batch * heads, tokens, sources].
            average_attn_weights: Whether the weights are averaged over the heads.
            is_causal: Says that `attn_mask` is the causal one, which is used as it is given.

        Returns:
            The output, shaped as the query, and the weights [batch, (heads,) tokens, sources].
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal needs the attn_mask that it is a hint for")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (
            self.get_submodule(name)(x).unflatten(-1, (self.num_heads, self.head_dim))
            for name, x in zip(_PARTS, (query, key, value), strict=True)
        )
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mask = _merged(attn_mask, key_padding_mask, self.num_heads, q.dtype)
        rate = self.dropout if self.training else 0.0
        if mask is not None and not need_weights:
            # A row that is masked throughout gives zeros in torch's kernel, and NaN written out.
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, mask, rate)
            weights = None
        else:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = nn.functional.dropout(weights, rate) if rate > 0 else weights
            mixed = weights @ v
        output: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            output, weights = output.squeeze(0), None if weights is None else weights.squeeze(0)
        elif not self.batch_first:
            output = output.transpose(0, 1)
        return output, weights if need_weights else None


def canonical(model: nn.Module) -> nn.Module:
    """Replace every packed attention, in place; returns the network (or what replaced all of it).

    Raises:
        UnsupportedError: An attention appends learned or zero keys (names it).
    """
    made: dict[int, Attention] = {}
    seen: dict[int, list[nn.Parameter]] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.MultiheadAttention) and _plain(module):
            if module.bias_k is not None or module.add_zero_attn:
                raise UnsupportedError(
                    f"attention {name or type(module).__name__} appends keys of its own "
                    "(add_bias_kv or add_zero_attn): its projections cannot be unpacked; build it "
                    "without them"
                )
            made[id(module)] = Attention(module, seen)
    for parent in list(model.modules()):
        if made and isinstance(parent, nn.TransformerEncoder):
            parent.use_nested_tensor = False  # a form of its fused path, chosen when it was built
        for name, child in list(parent._modules.items()):
            if id(child) in made:
                setattr(parent, name, made[id(child)])
    return made.get(id(model), model)


def renamed(model: nn.Module, state: Tensors) -> Tensors:
    """A state dict with the packed names of torch's attention translated to ours.

    Args:
        model: A canonical network.
        state: From before or after unpacking; other names pass as they are.
    """
    result = dict(state)
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, Attention):
            continue
        prefix = f"{name}." if name else ""
        for kind in ("weight", "bias"):
            packed = result.pop(f"{prefix}in_proj_{kind}", None)
            if packed is not None:
                parts = zip(_PARTS, packed.chunk(3), strict=True)
                result |= {f"{prefix}{part}.{kind}": value.clone() for part, value in parts}
        for part in _PARTS:
            if (alone := result.pop(f"{prefix}{part}_weight", None)) is not None:
                result[f"{prefix}{part}.weight"] = alone
    return result


def without_batchnorm(model: nn.Module, pairs: Sequence[Sequence[str]]) -> None:
    """Give the network the structure it has once these norms are folded, in place; not the weights.

    Args:
        model: The network.
        pairs: (layer, norm) by module name, as ``model.json`` lists them under ``folded``.

    Raises:
        ConfigError: The network has no such modules.
    """
    for layer, norm in pairs:
        try:
            owner, module = model.get_submodule(layer), model.get_submodule(norm)
        except AttributeError as error:
            raise ConfigError(
                f"model.json says that {norm} is folded into {layer}: {error}; it is of another "
                "network or another version of it"
            ) from error
        weight = owner.weight
        assert isinstance(weight, Tensor)
        if owner.bias is None:
            owner.bias = nn.Parameter(weight.new_zeros(weight.shape[0]))
        # A norm of timm carries its activation: it stays, under its own name.
        rest = OrderedDict(module.named_children())
        parent, _, child = norm.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Sequential(rest) if rest else nn.Identity())


def _plain(module: nn.MultiheadAttention) -> bool:
    return type(module).forward is nn.MultiheadAttention.forward


def _parts(packed: nn.Parameter, seen: dict[int, list[nn.Parameter]]) -> list[nn.Parameter]:
    """The thirds of a packed parameter, each of its own memory."""
    if id(packed) not in seen:
        seen[id(packed)] = [nn.Parameter(part.clone()) for part in packed.detach().chunk(3)]
    return seen[id(packed)]


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """A Linear of given parameters; draws no random numbers."""
    n, k = weight.shape
    linear = nn.Linear(k, n, bias=bias is not None, device="meta")
    linear.weight = weight
    if bias is not None:
        linear.bias = bias
    return linear


def _merged(
    attention: Tensor | None, padding: Tensor | None, heads: int, dtype: torch.dtype
) -> Tensor | None:
    """Both masks as one float to add, broadcast against [batch, heads, tokens, sources]."""
    masks = []
    if attention is not None:
        masks.append(_added(attention, dtype))
        if attention.dim() == 3:
            masks[0] = torch.unflatten(masks[0], 0, (-1, heads))
    if padding is not None:
        masks.append(_added(padding, dtype)[:, None, None, :])
    return None if not masks else masks[0] if len(masks) == 1 else masks[0] + masks[1]


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
