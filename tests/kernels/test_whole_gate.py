"""The whole gate, for one target and the eight kernels of one tile, compiled for real.

`make kernels` runs these, which has the compiler; `make test` leaves them out.

Last in the folder: mutants.py stops at the first test that fails, and these take the longest.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tiny import programs

from edgekd.engine.native import Kernels
from edgekd.errors import ContractError, ToolchainError
from edgekd.sparse_gemm import OUTPUTS
from kernels.conftest import SOURCES

BENCH = Path(__file__).parents[2] / "bench" / "kernels"
ORIN = "jetson-agx-orin-64gb-jp6.2"
CHOOSE = """#pragma once
#include "instances.h"
namespace edgekd {
struct Shape { int64_t m, n, k; int multiprocessors; };
struct Choice { const char *tile, *reason; };
inline const Choice* choose(const Shape&) {
  static const Choice row = {"small_t8", "the only one"};
  return &row;
}
}  // namespace edgekd
"""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """`compiled`, after a first run that accepted what it found."""
    pytest.importorskip("nvidia.cuda_nvcc", reason="needs nvcc: pip install 'edgekd[cuda]'")
    pytest.importorskip("nvidia.cu13", reason="needs nvcc: pip install 'edgekd[cuda]'")
    sys.path.insert(0, str(BENCH))
    folder = tmp_path_factory.mktemp("gate")
    shutil.copytree(SOURCES, folder / "kernels")
    instances = folder / "kernels" / "src" / "instances.h"
    others = r"X\((?!small_t8\b)\w+, (?:Small|Large)M<[^>]*>\)"
    instances.write_text(re.sub(others, "", instances.read_text()))
    (instances.parent / "choose.h").write_text(CHOOSE)  # its own names the tiles that are cut
    module = importlib.import_module("compiled")
    patch = pytest.MonkeyPatch()
    for name, value in {
        "KERNELS": folder / "kernels", "BUDGET": folder / "budget.json", "OUT": folder / "out",
        "ARCHITECTURES": ("87",),
    }.items():  # fmt: skip
        patch.setattr(module, name, value)
    patch.setattr(module.results, "FOLDER", folder)
    patch.setattr(module.target, "names", lambda: [ORIN])
    patch.setattr(sys, "argv", ["compiled.py", "--accept"])
    assert module.main() == 0
    yield module
    patch.undo()


def test_the_index_is_of_what_is_in_the_cubins(gate: ModuleType) -> None:
    index = json.loads((gate.OUT / "index.json").read_text())
    assert index["targets"] == {ORIN: {"cubin": "kernels.sm_87.cuda12.6.cubin", "cuda": "12.6"}}
    assert set(index["cubins"]) == {f"kernels.sm_87.cuda{v}.cubin" for v in ("12.6", "13.0")}
    budget = json.loads(gate.BUDGET.read_text())
    for name, cubin in index["cubins"].items():
        path = gate.OUT / name
        assert cubin["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        entries = gate.sass.kernels(gate.run(gate.tool("nvdisasm"), "-c", str(path)))
        assert set(entries) == set(index["kernels"]) == set(cubin["registers"])
        assert len(entries) == 2 * len(OUTPUTS)
        costs = budget[f"sm_{cubin['sm']} by CUDA {cubin['assembled_by_cuda']}"]
        assert cubin["registers"] == {each: cost["registers"] for each, cost in costs.items()}
        ptx = index["ptx"][cubin["ptx"]]
        assert ptx["version"] == "8.5"
        assert ptx["sha256"] == hashlib.sha256((gate.OUT / cubin["ptx"]).read_bytes()).hexdigest()


def test_a_table_of_other_launches_is_told(gate: ModuleType) -> None:
    table = json.loads((gate.OUT / "instances.json").read_text())["kernels"]
    cubin = gate.OUT / "kernels.sm_87.cuda12.6.cubin"
    assert gate.cubins.disagreements(cubin, table) == []
    table["dense_small_t8_s8"]["block_threads"] = 128
    table["sparse_small_t9_s8"] = table.pop("sparse_small_t8_s8")
    assert gate.cubins.disagreements(cubin, table) == [
        "sparse_small_t8_s8 in kernels.sm_87.cuda12.6.cubin: the sources' table has no such kernel",
        "dense_small_t8_s8 in kernels.sm_87.cuda12.6.cubin: compiled for blocks of 256 threads, "
        "the sources' table launches 128",
        "sparse_small_t9_s8: is in the sources' table and not in kernels.sm_87.cuda12.6.cubin",
    ]


def test_a_cubin_over_its_budget_is_refused_and_gets_no_index(
    gate: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["compiled.py"])
    accepted = gate.BUDGET.read_text()
    assert gate.main() == 0
    budget = json.loads(accepted)
    kernel = budget["sm_87 by CUDA 12.6"]["sparse_small_t8_s8"]
    found = kernel["registers"]
    kernel["registers"] -= 1
    gate.BUDGET.write_text(json.dumps(budget))
    capsys.readouterr()
    assert gate.main() == 1
    assert capsys.readouterr().out == (
        f"sparse_small_t8_s8 on sm_87 by CUDA 12.6: registers {found}, expected at most "
        f"{found - 1}\n"
    )
    assert not (gate.OUT / "index.json").exists()


def test_spills_are_seen_and_refused(gate: ModuleType) -> None:
    """The same PTX, short of registers: ptxas and the machine code say so, and it is refused."""
    build = gate.Build("87", "12.6")
    cubin = gate.OUT / "spilling.cubin"
    ptx = gate.OUT / "spilling.ptx"
    crowded = (gate.OUT / build.ptx).read_text().replace(".minnctapersm 1", ".minnctapersm 6")
    ptx.write_text(crowded)  # 6 blocks of 256 threads leave each thread 40 registers
    ptxas = gate.assemblers()["12.6"]
    words = gate.run(ptxas, "-v", "-arch=sm_87", "-o", str(cubin), str(ptx))
    cubin.with_name("spilling.cubin.log").write_text(words)
    table = json.loads((gate.OUT / "instances.json").read_text())["kernels"]
    found = gate.measured(cubin, table)
    budget = json.loads((gate.KERNELS / "budget.json").read_text())[str(build)]
    allowed = {name: budget[name] for name in found}
    wrong = gate.violations({str(build): found}, {str(build): allowed})
    name = "sparse_small_t8_gelu_s8"
    spilled = found[name]["spill_bytes"]
    assert spilled > 0
    assert f"{name} on {build}: spill_bytes {spilled}, expected at most 0" in wrong
    assert any(each.startswith(f"{name} on {build}: local_accesses") for each in wrong)


def test_a_library_for_a_gpu_is_linked_by_pypis_compiler_and_loads(
    gate: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = programs.load("bench/kernels/gpu.py")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(gpu, "KERNELS", gate.KERNELS)
    monkeypatch.setattr(gpu, "OUT", gate.OUT)
    assert gpu.compiler() == f"{gate.tool('nvcc')} -L{Path(gate.tool('nvcc')).parents[1] / 'lib'}"
    path = gpu.device_library("87")
    assert path == gate.OUT / "sm_87" / "libedgekd_kernels.so"
    kernels = Kernels(path)
    assert kernels.tiles == ("small_t8",)
    # The device is looked for first; where there is one, the null pointer is what is wrong.
    without = "sparse_gemm_s8: no CUDA device: .+|x is null"
    with pytest.raises((ToolchainError, ContractError), match=without) as refused:
        kernels.gemm("s32", (8, 64, 64), 0, 0, 0)
    rate = ctypes.c_double(-1)
    status = kernels.library.edgekd_raw_rate(0, ctypes.byref(rate))
    assert (status, rate.value > 0) == (
        (7, False) if "no CUDA" in str(refused.value) else (0, True)
    )
