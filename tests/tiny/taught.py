"""Students under teacher intervention, and the packed one written out slowly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from edgekd.data import IO
from edgekd.data import Tensor as TensorFacts
from edgekd.distill.intervention import Intervention, intervene
from edgekd.models import Tensors, forward
from edgekd.recipe import TeacherIntervention
from tiny import packed

OUT = TensorFacts(name="logits", dtype="float32", shape=["batch", 4])
LOGITS = IO(inputs=[], outputs=[OUT], labels=[])
RANDOM = torch.Generator().manual_seed(0)
IMAGES = {"pixel_values": torch.randn(3, 3, 16, 16, generator=RANDOM)}
SENTENCES = {
    "input_ids": torch.randint(1, 50, (3, 8), generator=RANDOM),
    "attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] * 6 + [0] * 2]),
}
X = {"x": torch.randn(3, 32, generator=RANDOM)}
Signals = list[Tensor]


def settings(mode: str, **changes: Any) -> TeacherIntervention:
    return TeacherIntervention.model_validate({"mode": mode, "share": 1.0, **changes})


def hf(config: dict[str, Any], kind: str) -> nn.Module:
    facts = dict(config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    architecture = getattr(transformers, facts.pop("architectures")[0])
    parsed = transformers.AutoConfig.for_model(facts.pop("model_type"), **facts)
    model: nn.Module = architecture._from_config(parsed, attn_implementation=kind)
    return model


def two(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Student and teacher of one shape and other weights."""
    torch.manual_seed(1)
    student = make()
    torch.manual_seed(2)
    return student.train(), make().eval().requires_grad_(False)


def acting(
    mode: str, networks: tuple[nn.Module, nn.Module], inputs: Tensors, step: int = 0, **changes: Any
) -> Intervention:
    found = intervene(settings(mode, **changes), 4, 0, networks, inputs, LOGITS)
    found.at(step)
    return found


def passes(found: Intervention, networks: tuple[nn.Module, nn.Module], inputs: Tensors) -> Tensor:
    """One step's passes; the student's logits."""
    student, teacher = networks
    with torch.no_grad(), found.teaching():
        forward(teacher, inputs, LOGITS)
    with found.acting():
        return forward(student, inputs, LOGITS)["logits"]


def slow(
    net: packed.ViT, x: Tensor, what: str, taught: Signals | None, share: float
) -> tuple[Tensor, Signals, Signals]:
    """The packed network written out with explicit detaches; logits, own maps, own contexts."""
    maps: Signals = []
    contexts: Signals = []
    x = net.embed(x.reshape(-1, packed.TOKENS, 8)) + net.position
    for index, block in enumerate(net.blocks):
        hidden = block.norm1(x)
        seen = (1 - share) * hidden + share * hidden.detach()
        q, k, _ = block.attn.split(block.attn.qkv(seen))
        v = block.attn.split(block.attn.qkv(seen if what == "context" else hidden))[2]
        own = (q @ k.transpose(-2, -1)).softmax(-1)
        used = own
        if what == "map" and taught is not None:
            used = share * taught[index] + (1 - share) * own
        context = used @ v
        maps, contexts = [*maps, own], [*contexts, context]
        if what == "context" and taught is not None:
            context = share * taught[index] + (1 - share) * context
        x = x + block.attn.proj(context.transpose(1, 2).reshape(x.shape))
        x = x + block.mlp(block.norm2(x))
    return net.head(net.norm(x).mean(1)), maps, contexts
