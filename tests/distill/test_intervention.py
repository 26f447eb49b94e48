"""Teacher intervention: where it acts, what it does to signals, that it leaves no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import configs
from tiny.recipes import tiny
from torch import Tensor, nn

from edgekd.data import IO
from edgekd.data import Tensor as TensorFacts
from edgekd.distill.intervention import Intervention, Site, chosen_sites, residual_sites
from edgekd.distill.objective import Objective
from edgekd.distill.student import distill
from edgekd.errors import ConfigError
from edgekd.export.model import export
from edgekd.recipe import Losses, TeacherIntervention

IMAGES = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
TOKENS = {
    "input_ids": torch.arange(16).reshape(2, 8),
    "attention_mask": torch.ones(2, 8, dtype=torch.long),
}
OUT = TensorFacts(name="logits", dtype="float32", shape=["batch", 4])
LOGITS = IO(inputs=[], outputs=[OUT], labels=[])


class Block(nn.Module):
    """A pre-norm block around torch's own attention, whose softmax no module shows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y)[0]
        return x + self.ffn(x)


def network(config: dict[str, Any], attention: str = "eager") -> nn.Module:
    facts = dict(config)
    architecture = getattr(transformers, facts.pop("architectures")[0])
    parsed = transformers.AutoConfig.for_model(facts.pop("model_type"), **facts)
    model: nn.Module = architecture._from_config(parsed, attn_implementation=attention)
    return model.eval()


def sites(model: nn.Module, inputs: dict[str, Tensor]) -> list[tuple[str, bool]]:
    return [(site.module, site.attention) for site in residual_sites(model, inputs, LOGITS)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bert_closes_two_branches_a_block(attention: str) -> None:
    found = sites(network(configs.BERT, attention), TOKENS)
    assert found == [
        (f"bert.encoder.layer.{block}.{module}", softmax)
        for block in (0, 1)
        for module, softmax in (("attention.output.dense", True), ("output.dense", False))
    ]


def test_vit_closes_two_branches_a_block() -> None:
    assert sites(network(configs.VIT), IMAGES) == [
        (f"vit.layers.{block}.{module}", softmax)
        for block in (0, 1)
        for module, softmax in (("attention.o_proj", True), ("mlp.fc2", False))
    ]


def test_swin_has_an_attention_branch_in_every_block() -> None:
    found = sites(network(configs.SWIN), IMAGES)
    assert [attention for _, attention in found] == [True, False] * 3


def test_resnet_has_branches_without_attention_and_every_one_is_chosen() -> None:
    found = residual_sites(network(configs.RESNET), IMAGES, LOGITS)
    assert found
    assert not any(site.attention for site in found)
    assert chosen_sites(found) == [site.module for site in found]


def test_torchs_own_attention_is_seen() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Block(), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(x).mean(1))

    assert sites(Net(), {"x": torch.randn(2, 5, 16)}) == [
        ("block.attention", True),
        ("block.ffn.2", False),
    ]


def test_attention_is_chosen_before_other_branches_and_no_branch_is_refused() -> None:
    assert chosen_sites([Site("a", True), Site("m", False)]) == ["a"]
    with pytest.raises(ConfigError, match="no module whose output is added to a residual stream"):
        chosen_sites(residual_sites(nn.Sequential(nn.Linear(4, 4)), {"input": torch.ones(1, 4)},
                                    LOGITS))  # fmt: skip


class Branch(nn.Module):
    """y = x + fc(x), so that what a site gives is read off the output."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4, bias=False)
        nn.init.constant_(self.fc.weight, weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(x)


def mixed(share: float, steps: int) -> tuple[Branch, Branch, Intervention]:
    student, teacher = Branch(1.0), Branch(3.0).requires_grad_(False)
    settings = TeacherIntervention(share=share, weight=2.0)
    acting = Intervention(settings, steps, student.train(), teacher, [("fc", "fc")])
    return student, teacher, acting


@pytest.mark.parametrize(("step", "strength"), [(0, 1.0), (2, 0.5), (4, 0.0), (7, 0.0)])
def test_the_teachers_signal_fades_over_its_share_of_the_steps(step: int, strength: float) -> None:
    student, teacher, acting = mixed(share=0.5, steps=8)
    x = torch.eye(4)
    acting.at(step)
    teacher(x)
    site = student(x) - x
    assert torch.allclose(site, strength * teacher.fc(x) + (1 - strength) * x @ torch.ones(4, 4))


def test_a_replaced_site_learns_from_its_own_loss_alone() -> None:
    student, teacher, acting = mixed(share=1.0, steps=4)
    x = torch.arange(16.0).reshape(4, 4)
    acting.at(0)
    teacher(x)
    student(x).sum().backward(retain_graph=True)
    assert not student.fc.weight.grad.any()  # the signal is the teacher's, no gradient comes back
    loss = acting.loss()
    taught, own = teacher.fc(x), student.fc.weight.detach()
    expected = 2.0 * ((x @ own.T - taught) ** 2).mean() / taught.var(correction=0)
    assert torch.allclose(loss.detach(), expected)
    loss.backward()
    assert student.fc.weight.grad.any()


def test_a_stale_teacher_is_an_error_even_at_the_same_shape() -> None:
    student, teacher, acting = mixed(share=1.0, steps=4)
    x = torch.ones(2, 4)
    acting.at(0)
    teacher(x)
    student(x)
    with pytest.raises(ConfigError, match=r"the student's fc gives .* the teacher's None"):
        student(x)


def test_an_evaluated_student_is_on_its_own_and_removal_leaves_no_hook() -> None:
    student, teacher, acting = mixed(share=1.0, steps=4)
    x = torch.ones(2, 4)
    acting.at(0)
    teacher(x)
    assert torch.equal(student.eval()(x), x + x @ torch.ones(4, 4))
    acting.remove()
    student.train()
    assert torch.equal(student(x), x + x @ torch.ones(4, 4))
    assert not student.fc._forward_hooks
    assert not teacher.fc._forward_hooks


def test_the_objective_adds_the_term_beside_its_own() -> None:
    student, teacher, acting = mixed(share=1.0, steps=4)
    out = TensorFacts(name="y", dtype="float32", shape=["batch", 4])
    facts = IO(inputs=[], outputs=[out], labels=[])
    objective = Objective(Losses(blocks=0.0), student, teacher, facts, acting)
    acting.at(0)
    terms = objective({"x": torch.eye(4)}, torch.arange(4))
    assert list(terms) == ["logits", "intervention"]
    objective.remove()
    assert not student.fc._forward_hooks


def test_it_trains_changes_the_weights_and_leaves_no_trace_in_the_graph(tmp_path: Path) -> None:
    settings = {"steps": 4, "batch_size": 16}
    with_ti = {**settings, "intervention": {"share": 0.5}}
    plain = distill(tiny(tmp_path, configs.VIT, "images", distill=settings), tmp_path / "out")
    taught = distill(tiny(tmp_path, configs.VIT, "images", distill=with_ti), tmp_path / "out")
    assert taught.results["intervention_sites"]
    assert plain.results["intervention_sites"] == []
    weights = [each.manifest.files["model.safetensors"].sha256 for each in (plain, taught)]
    assert weights[0] != weights[1]
    assert "intervention" in taught.file("losses.jsonl").read_text()
    graphs = [
        export(each, tmp_path / "out").results["structure_sha256"] for each in (plain, taught)
    ]
    assert graphs[0] == graphs[1]
