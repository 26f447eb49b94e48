"""The kernels on the GPU at hand: equal to the contract, then how fast, against what.

    python bench/kernels/gpu.py                  where nvcc and a C++ compiler are
    python bench/kernels/gpu.py --minutes 8      where the GPU is lent

1. Every instance on every shape, to the bit (`equality`): the run ends there where one differs.
2. The raw rates of the two instructions, IMMA and IMMA.SP, from registers alone; r is their ratio,
   the most that sparsity can give on this GPU. And what a copy reaches.
3. Every tile on every shape, with L2 warm: what the table of choose.h is tuned by.
4. Per shape: our sparse kernel, its dense twin, cuBLASLt's INT8 (torch._int_mm) and cuSPARSELt's
   (torch._cslt_sparse_mm), each with the epilogue that the layer has in its network, under CUDA
   graphs, taking turns, with L2 warm and then flushed; medians of repetitions and their spread
   (`timing`). And the products alone, to INT32.
5. What the kernels are held to (`roofline.aims`), with every shape that falls short.

It writes bench/results/kernels-<gpu>.json after every layer, so that a run which is cut off loses
one, and the roofline beside it, ...svg. A GPU that is no target shows correctness and ratios of one
run; it never stands for an A100 or an Orin.
"""

from __future__ import annotations

import argparse
import functools
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(Path(__file__).parent)]

import cases  # noqa: E402
import equality  # noqa: E402
import results  # noqa: E402
import roofline  # noqa: E402
import timing  # noqa: E402
from cases import Case, Layer  # noqa: E402

from edgekd.engine.native import Kernels  # noqa: E402

STARTED = time.monotonic()
KERNELS = ROOT / "kernels"
OUT = ROOT / "out" / "kernels"
# n, k of the linear layers of ViT and BERT: tiny, small, base, large.
LAYERS = tuple(
    layer for d in (192, 384, 768, 1024) for layer in ((3 * d, d), (d, d), (4 * d, d), (d, 4 * d))
)
TOKENS = (1, 8, 50, 197, 394, 788, 1576, 6304)
COMPARED_TOKENS = tuple(sorted({*TOKENS, 7, 53}))
Pass = Callable[[Case], None]


def main(arguments: Sequence[str] | None = None) -> Path:
    """Compare, time, judge, write; the result's path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, help="libedgekd_kernels.so  [default: make it]")
    parser.add_argument("--emulator", type=Path, help="libedgekd_emulator.so  [default: make it]")
    parser.add_argument("--compare-only", action="store_true", help="no times")
    parser.add_argument("--minutes", type=float, help="no layer is begun after  [default: any]")
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit(
            "bench/kernels/gpu.py: no CUDA device here; the emulator's tests are tests/kernels"
        )
    properties = torch.cuda.get_device_properties(0)
    library = asked.library or device_library(f"{properties.major}{properties.minor}")
    kernels = Kernels(library)
    emulator = Kernels(asked.emulator or made("emulator", OUT))
    content: dict[str, Any] = {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "torch_cuda": torch.version.cuda,
        "state_before": timing.state(),
    }
    name = "kernels-" + re.sub(r"[^a-z0-9]+", "-", properties.name.lower()).strip("-")
    keep = functools.partial(
        results.write, name, "python bench/kernels/gpu.py", ("kernels/src", "kernels/include"),
        content, needs=properties.name,
    )  # fmt: skip
    layers = [Layer(kernels, n, k) for n, k in LAYERS]
    found = content["equality"] = equality.compare(emulator, layers, COMPARED_TOKENS)
    found["differ"] |= equality.operators(library, emulator, layers[0])
    path = keep()
    _say(f"equality: {found}")
    if found["differ"]:
        sys.exit("\n".join(found["differ"].values()))
    content["raw_rates"] = timing.raw_rates(kernels)
    path = keep()
    _say(f"raw rates: {content['raw_rates']}")
    if not asked.compare_only:
        deadline = None if asked.minutes is None else STARTED + 60 * asked.minutes
        speed(layers, properties, content, keep, deadline)
        content["state_after"] = timing.state()
        path = keep()
        roofline.tell(content)
        roofline.draw(content, path.with_suffix(".svg"))
    _say(str(path))
    return path


def speed(
    layers: Sequence[Layer], properties: Any, content: dict[str, Any], keep: Callable[[], Path],
    deadline: float | None,
) -> None:  # fmt: skip
    """Three passes over every shape, the quickest first; each layer's rows are kept at once.

    Args:
        layers: What is timed, `TOKENS` of each.
        properties: Of the GPU.
        content: The result: `raw_rates` of it are read, `rows`, `tiles` and what is judged by them
            written, and under `not_measured` a sentence for each layer that was left out.
        keep: Writes the result.
        deadline: Of `time.monotonic`; no layer is begun after it.
    """
    rates = content["raw_rates"]
    copied = content["gigabytes_per_s"] = timing.bandwidth()
    rows: list[dict[str, Any]] = []
    tiles: list[dict[str, Any]] = []
    left_out: list[str] = []
    content |= {"tiles": tiles, "rows": rows, "not_measured": left_out, "aims": [], "choice": {},
                "peers_epilogue": {}}  # fmt: skip
    flush = torch.empty(2 * properties.L2_cache_size, dtype=torch.int8, device=cases.DEVICE)

    def chosen(case: Case) -> str:
        return (case.layer.kernels.choose(case.sizes, properties.multi_processor_count) or ("",))[0]

    def shape(l2: str, buffer: torch.Tensor | None, case: Case) -> None:
        output = case.layer.output
        content["peers_epilogue"][output] = cases.peers_epilogue(output)[1]
        row = timing.shape_row(case, chosen(case), l2, buffer)
        rows.append({**row, **roofline.shares(row, rates, copied)})

    passes: dict[str, Pass] = {
        "every tile": lambda case: tiles.append(timing.tiles_row(case, chosen(case))),
        "L2 warm": functools.partial(shape, "warm", None),
        "L2 flushed": functools.partial(shape, "flushed", flush),
    }
    shapes = [[Case(layer, m) for m in TOKENS] for layer in layers]
    for what, measure in passes.items():
        for each in shapes:
            where = f"{what}, {each[0].layer.n} x {each[0].layer.k}"
            try:
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError("the minutes were over")
                for case in each:
                    measure(case)
            except Exception as error:  # whatever it is: the next layer may do
                left_out.append(f"{where}: {cases.reason(error)}")
            content["aims"] = roofline.aims(rows, tiles, rates)
            content["choice"] = roofline.choice(tiles)
            keep()
        _say(what)


def device_library(architecture: str) -> Path:
    """Our kernels compiled for one GPU, such as ``90``.

    By the machine's own nvcc where it has one: the driver must be as new as the compiler.
    """
    folder = OUT / f"sm_{architecture}"  # make would take another architecture's for this one's
    return made("library", folder, f"NVCC={compiler()}", f"ARCHITECTURES={architecture}")


def compiler() -> str:
    """An nvcc and the options with which it links."""
    if own := shutil.which("nvcc"):
        return own
    import compiled  # here, for a lent GPU's Python lacks what it imports

    found = Path(compiled.tool("nvcc"))
    if not found.is_absolute():
        sys.exit("nvcc is not here: pip install 'edgekd[cuda]'")
    # PyPI's does not look where its own runtime lies.
    return f"{found} -L{found.parents[1] / 'lib'}"


def made(what: str, folder: Path, *settings: str) -> Path:
    """A library of ``kernels/Makefile``: ``library`` or ``emulator``."""
    command = ["make", "-s", "-C", str(KERNELS), what, f"OUT={folder}", *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return folder / f"libedgekd_{'kernels' if what == 'library' else what}.so"


def _say(what: str) -> None:
    print(f"{time.monotonic() - STARTED:6.1f} s  {what}", flush=True)


if __name__ == "__main__":
    main()
