"""A Student that goes on from another: masks kept, layers released, other recipes refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import configs
from tiny.recipes import stored, tiny

from edgekd.artifact import Artifact
from edgekd.distill.student import distill
from edgekd.errors import ArtifactError, ConfigError
from edgekd.recipe import Recipe

RELEASED = ["blocks.0.*"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    base = tmp_path_factory.mktemp("first")
    return distill(tiny(base), base / "out")


def going_on(first: Artifact, base: Path, **changes: Any) -> Recipe:
    start = {"start": str(first.path)}
    return tiny(base, **{"student": start, "distill": {"steps": 3, "batch_size": 16}, **changes})


def kept_and_grown(first: Artifact, student: Artifact) -> tuple[set[str], set[str]]:
    """Layers whose masks are those of the first Student, and layers that grew where it is zero.

    Of both the weights are looked at: pruned ones are zero under a mask and nearly none after it.
    """
    before, after = stored(first, "quantizers"), stored(student, "quantizers")
    kept, grown = set(), set()
    for name in before:
        if not name.endswith(".mask"):
            continue
        layer, pruned = name.removesuffix(".mask"), ~before[name]
        assert not stored(first, "model")[f"{layer}.weight"][pruned].any()
        now = stored(student, "model")[f"{layer}.weight"][pruned]
        if name in after:
            assert torch.equal(before[name], after[name])
            assert not now.any()
            kept.add(layer)
        else:
            assert (now != 0).float().mean() > 0.9
            grown.add(layer)
    assert {f"{layer}.mask" for layer in kept} == {n for n in after if n.endswith(".mask")}
    return kept, grown


def test_masks_are_kept_and_released_layers_grow_back(first: Artifact, tmp_path: Path) -> None:
    student = distill(going_on(first, tmp_path, sparsity={"release": RELEASED}), tmp_path / "out")
    assert student.manifest.parents["start"] == first.id
    kept, grown = kept_and_grown(first, student)
    assert kept == {"stem", "blocks.1.fc1", "blocks.1.fc2"}
    assert grown == {"blocks.0.fc1", "blocks.0.fc2"}
    rows = {row["layer"]: row for row in student.read_json("layers.json")}
    assert not rows["blocks.0.fc1"]["sparse"]
    assert rows["blocks.0.fc1"]["sparse_reason"] == "released to dense (sparsity.release)"
    assert rows["blocks.0.fc1"]["int8"]
    assert rows["blocks.1.fc1"]["sparse"]


@pytest.mark.parametrize(
    ("config", "data", "pattern", "released", "sparse"),
    [
        (configs.VIT, "images", "*.0.mlp.*", {"vit.layers.0.mlp.fc1", "vit.layers.0.mlp.fc2"}, 12),
        (
            configs.BERT, "tokens", "*.0.attention.*.[qk]*",
            {f"bert.encoder.layer.0.attention.self.{part}" for part in ("query", "key")}, 13,
        ),
        (
            configs.RESNET, "images", "*.stages.0.layers.0.layer.*",
            {f"resnet.encoder.stages.0.layers.0.layer.{n}.convolution" for n in (0, 1)}, 5,
        ),
    ],
    ids=["vit", "bert", "resnet"],
)  # fmt: skip
def test_every_family_releases_what_is_named_and_keeps_the_other_masks(
    config: dict[str, Any], data: str, pattern: str, released: set[str], sparse: int, tmp_path: Path
) -> None:
    one = distill(tiny(tmp_path, config, data), tmp_path / "out")
    assert one.results["layers_sparse"] == sparse
    recipe = going_on(one, tmp_path, model=config, data=data, sparsity={"release": [pattern]})
    two = distill(recipe, tmp_path / "out")
    assert two.results["layers_sparse"] == sparse - 2
    kept, grown = kept_and_grown(one, two)
    assert grown == released
    assert len(kept) == sparse - 2


def test_it_starts_from_the_students_weights(first: Artifact, tmp_path: Path) -> None:
    same = {"steps": 0, "batch_size": 16}
    student = distill(going_on(first, tmp_path, distill=same), tmp_path / "out")
    for name, tensor in stored(first, "model").items():
        assert torch.equal(stored(student, "model")[name], tensor), name


def test_masks_are_not_chosen_again(tmp_path: Path) -> None:
    chosen = {"method": "sparsegpt", "permute": True, "pattern_rows": 4}
    one = distill(tiny(tmp_path, sparsity=chosen), tmp_path / "out")
    assert "permutation" in one.results
    for rows in (4, 2, 1):  # what four rows share, two share too
        recipe = going_on(one, tmp_path, sparsity={"pattern_rows": rows})
        student = distill(recipe, tmp_path / "out")
        before, after = stored(one, "quantizers"), stored(student, "quantizers")
        assert all(torch.equal(before[x], after[x]) for x in before if x.endswith(".mask"))
        assert "permutation" not in student.results


def test_a_student_with_folded_batch_norms(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "model": configs.RESNET,
        "data": "images",
        "distill": {"steps": 1, "batch_size": 8, "losses": {"blocks": 0.0}},
    }
    one = distill(tiny(tmp_path, **settings), tmp_path / "out")
    assert one.results["batchnorm_folded"] > 0
    two = distill(tiny(tmp_path, student={"start": str(one.path)}, **settings), tmp_path / "out")
    assert two.read_json("model.json") == one.read_json("model.json")
    before, after = stored(one, "quantizers"), stored(two, "quantizers")
    masks = [name for name in before if name.endswith(".mask")]
    assert masks
    assert all(torch.equal(before[name], after[name]) for name in masks)


def refused(recipe: Recipe, base: Path, error: type[Exception] = ConfigError) -> str:
    with pytest.raises(error) as caught:
        distill(recipe, base / "out")
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"sparsity": {"exclude": ["stem"]}},
            "stem is Linear n=32 k=32 INT8, 2:4 in it, expected Linear n=32 k=32 INT8, dense "
            "(in sparsity.exclude)",
        ),
        (
            {"quantization": {"exclude": ["stem"], "calibration_samples": 32}},
            "stem is Linear n=32 k=32 INT8, 2:4 in it, expected Linear n=32 k=32 float, 2:4",
        ),
        (
            {"model": "wide"},
            "its network is not this student's: found 'python:tiny.models:mlp', expected "
            "'python:tiny.models:wide'",
        ),
        (
            {"model": configs.VIT, "data": "images"},
            "its network is not this student's: found 'python:tiny.models:mlp', expected "
            "'hf:config.json'",
        ),
    ],
)
def test_a_student_of_another_recipe(
    changes: dict[str, Any], said: str, first: Artifact, tmp_path: Path
) -> None:
    found = refused(going_on(first, tmp_path, **changes), tmp_path)
    assert f"student.start '{first.path}' is a checkpoint of another recipe: " in found
    assert said in found
    assert "name a Student of this network, plan and arm, list what becomes dense in" in found


def test_another_configuration_is_told_by_the_key_that_differs(tmp_path: Path) -> None:
    none = {"steps": 0, "losses": {"blocks": 0.0}}
    one = distill(tiny(tmp_path, configs.VIT, "images", distill=none), tmp_path / "out")
    other = {**configs.VIT, "num_attention_heads": 4}
    recipe = tiny(tmp_path, other, "images", distill=none, student={"start": str(one.path)})
    found = refused(recipe, tmp_path)
    assert "network is not this student's: found num_attention_heads = 2, expected 4" in found


def test_the_dense_arm_does_not_go_on_from_a_sparse_student(
    first: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        distill(going_on(first, tmp_path), tmp_path / "out", "dense")
    assert (
        "stem is Linear n=32 k=32 INT8, 2:4 in it, expected Linear n=32 k=32 INT8, dense (2:4 is "
        "off in this arm): leave 'dense' out of the recipe's arms, or name a Student of the dense "
        "arm"
    ) in str(caught.value)


def test_nor_the_2_4_arm_from_a_dense_student(tmp_path: Path) -> None:
    dense = distill(tiny(tmp_path), tmp_path / "out", "dense")
    assert refused(going_on(dense, tmp_path), tmp_path).endswith(
        "stem is Linear n=32 k=32 INT8, dense in it, expected Linear n=32 k=32 INT8, 2:4: leave "
        "'sparse' out of the recipe's arms, or name a Student of the sparse arm"
    )


def test_weights_of_few_bits_do_not_become_int8_in_silence(tmp_path: Path) -> None:
    few = {"weights": "ternary"}
    made = distill(tiny(tmp_path, quantization=few), tmp_path / "out")
    found = refused(going_on(made, tmp_path), tmp_path)
    assert "stem has weights of 2 bits in it, expected 8: name a Student of this" in found
    again = distill(going_on(made, tmp_path, quantization=few), tmp_path / "out")
    assert again.manifest.parents["start"] == made.id


def test_masks_that_rows_do_not_share(first: Artifact, tmp_path: Path) -> None:
    found = refused(going_on(first, tmp_path, sparsity={"pattern_rows": 4}), tmp_path)
    assert found == (
        f"recipe tiny: student.start '{first.path}' was made with sparsity.pattern_rows = 1, "
        "expected 4, and its masks are kept as they are (sparsify: in the mask of stem, 8 of 8 "
        "runs of 4 rows have more than one pattern, expected one (sparsity.pattern_rows)): set "
        "sparsity.pattern_rows to 1, or name a Student made with 4"
    )
    found = refused(going_on(first, tmp_path, sparsity={"pattern_rows": 3}), tmp_path)
    assert "was made with sparsity.pattern_rows = 1, expected 3, and its masks are" in found
    assert "(stem: n is 32, expected a multiple of pattern_rows, 3: exclude" in found


def test_what_is_no_student(first: Artifact, tmp_path: Path) -> None:
    recipe = going_on(first, tmp_path, student={"start": "nowhere"})
    assert "nowhere" in refused(recipe, tmp_path, ArtifactError)
    (teacher,) = first.path.parent.glob("teacher-*")
    recipe = going_on(first, tmp_path, student={"start": str(teacher)})
    assert "is of kind Teacher, expected Student" in refused(recipe, tmp_path, ArtifactError)


def test_a_pattern_that_releases_nothing(first: Artifact, tmp_path: Path) -> None:
    recipe = going_on(first, tmp_path, sparsity={"release": ["blocks.7.*"]})
    assert "sparsity.release: 'blocks.7.*' matches no Linear or Conv2d" in refused(recipe, tmp_path)
