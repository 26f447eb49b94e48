"""The kernels on the GPU at hand: equal to the contract, then how fast, against what.

    python bench/kernels/gpu.py --library out/kernels/libedgekd_kernels.so

1. Every instance on every shape, compared with NumPy: one difference ends the run.
2. The raw rates of the two instructions, IMMA and IMMA.SP, from registers alone; r is their ratio,
   the most that sparsity can give on this GPU.
3. Per shape: our sparse kernel, its dense twin, cuBLASLt's INT8 (torch._int_mm) and cuSPARSELt's
   (torch's semi-structured), each with the same epilogue work, under CUDA graphs, with L2 warm and
   flushed, taking turns; medians of repetitions and their spread.

It writes bench/results/kernels-<gpu>.json. A GPU that is no target shows correctness and ratios of
one run; it never stands for an A100 or an Orin.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(Path(__file__).parent)]

import results  # noqa: E402
import roofline  # noqa: E402

from edgekd import sparse24, sparse_gemm  # noqa: E402
from edgekd.engine.native import Kernels  # noqa: E402
from edgekd.sparse_gemm import OUTPUTS, Output  # noqa: E402

# n, k of the linear layers of ViT and BERT: tiny, small, base, large.
LAYERS = tuple(
    layer for d in (192, 384, 768, 1024) for layer in ((3 * d, d), (d, d), (4 * d, d), (d, 4 * d))
)
TOKENS = (1, 8, 50, 197, 394, 788, 1576, 6304)
REPETITIONS = 9
CALLS = 20  # in one CUDA graph: a launch of a graph costs microseconds itself
OUT_SCALE = 0.0428


class Case:
    """Operands of one shape on the GPU, in the forms each peer wants."""

    def __init__(self, kernels: Kernels, m: int, n: int, k: int) -> None:
        """Draw them from a seed that the shape decides."""
        rng = np.random.default_rng([m, n, k])
        weights = rng.integers(-128, 128, (n, k), dtype=np.int8)
        self.host_weights = weights * sparse24.mask(weights)
        self.host_x = rng.integers(-128, 128, (m, k), dtype=np.int8)
        self.sizes = (m, n, k)
        scale = (rng.random(n, np.float32) + np.float32(0.5)) * np.float32(2 / (5080 * np.sqrt(k)))
        self.host_scale, self.host_bias = scale, rng.standard_normal(n).astype(np.float32)
        self.x, self.weights = cuda(self.host_x), cuda(self.host_weights)
        self.scale, self.bias = cuda(self.host_scale), cuda(self.host_bias)
        self.out_scale = cuda(np.array([OUT_SCALE], np.float32))
        self.packed = {
            sparse: cuda(kernels.pack(self.host_weights, sparse)) for sparse in (True, False)
        }
        dtypes = (torch.int32, torch.float16, torch.int8, torch.int8)
        self.y = {
            output: torch.empty(m, n, dtype=dtype, device="cuda")
            for output, dtype in zip(OUTPUTS, dtypes, strict=True)
        }

    def ours(
        self, kernels: Kernels, output: Output, sparse: bool, tile: str | None = None
    ) -> Callable[[], None]:
        """A call of one of our kernels on the current stream."""
        extra = self.out_scale.data_ptr() if output.endswith("s8") else 0
        pointers = (self.x.data_ptr(), self.packed[sparse].data_ptr(), self.y[output].data_ptr())
        return lambda: kernels.gemm(
            output, self.sizes, *pointers, scale=self.scale.data_ptr(), bias=self.bias.data_ptr(),
            extra=extra, sparse=sparse, tile=tile, stream=torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip

    def finish(self, acc: Tensor) -> Tensor:
        """The epilogue as separate operators, which is what a library's INT32 sums need."""
        y = torch.nn.functional.gelu(acc.float() * self.scale + self.bias)
        return (y / self.out_scale).round().clamp(-128, 127).to(torch.int8)

    def peers(self) -> dict[str, Callable[[], Any]]:
        """What torch has for the shape; a peer that refuses it is left out, and its words kept."""
        m = self.sizes[0]
        rows = max(32, -(-m // 32) * 32)  # both libraries want more tokens than one
        x = torch.zeros(rows, self.x.shape[1], dtype=torch.int8, device="cuda")
        x[:m] = self.x
        dense, found = self.weights.t(), {}
        found["cublaslt_s32"] = lambda: torch._int_mm(x, dense)
        found["cublaslt_and_epilogue"] = lambda: self.finish(torch._int_mm(x, dense)[:m])
        compressed = torch._cslt_compress(self.weights)
        tokens = x.t()

        def sums() -> Tensor:
            return torch._cslt_sparse_mm(compressed, tokens, out_dtype=torch.int32)

        found["cusparselt_s32"] = sums
        found["cusparselt_and_epilogue"] = lambda: self.finish(sums().t()[:m])
        return found


def cuda(array: np.ndarray) -> Tensor:
    """An array on the GPU."""
    return torch.from_numpy(np.ascontiguousarray(array)).cuda()


def compare(kernels: Kernels) -> dict[str, int]:
    """Every instance on every shape it takes, against NumPy; ends the run where one differs."""
    compared = differ = gelu_differ = 0
    for m in (1, 7, 53, 197, 394):
        for n, k in sorted(set(LAYERS)):
            case = Case(kernels, m, n, k)
            acc = sparse_gemm.sums(case.host_x, case.host_weights)
            extra = np.array([OUT_SCALE], np.float32)
            for output in OUTPUTS:
                wanted = sparse_gemm.epilogue(
                    acc, output, case.host_scale, case.host_bias,
                    extra if output.endswith("s8") else None,
                )  # fmt: skip
                for tile in kernels.tiles:
                    features, tokens = fits(tile)
                    if n % features or k % tokens:
                        continue
                    for sparse in (True, False):
                        case.y[output].zero_()
                        case.ours(kernels, output, sparse, tile)()
                        found = case.y[output].cpu().numpy()
                        wrong = int((found != wanted).sum())
                        compared += found.size
                        if output == "gelu_s8":
                            gelu_differ += wrong
                            step = np.abs(found.astype(int) - wanted.astype(int)).max()
                            differ += int(step > 1)
                        elif wrong:
                            kind = "sparse" if sparse else "dense"
                            sys.exit(f"{kind} {tile} {output} at {m} x {n} x {k}: {wrong} differ")
    if differ:
        sys.exit(f"gelu_s8: {differ} launches differ by more than one step")
    return {"outputs_compared": compared, "differ": 0, "gelu_one_step": gelu_differ}


def fits(tile: str) -> tuple[int, int]:
    """Multiples of n and k that a tile takes, from its name and kernels/src/instances.h."""
    if tile.startswith("small"):
        return 64, 64
    features = int(tile.split("_")[1].split("x")[0])
    return features, 128 if tile == "large_128x128" else 64


def times_us(calls: dict[str, Callable[[], Any]], flush: Tensor | None) -> dict[str, list[float]]:
    """Microseconds of one call, each repetition of every peer in turn, in CUDA graphs."""
    graphs = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(CALLS if flush is None else 1):
                call()
        graphs[name] = graph
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPETITIONS):
        for name, graph in graphs.items():
            if flush is not None:
                flush.zero_()  # larger than L2: weights and tokens come from memory
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            found[name].append(start.elapsed_time(end) * 1e3 / (CALLS if flush is None else 1))
    return found


def speed(kernels: Kernels) -> list[dict[str, Any]]:
    """A row for each shape and state of L2."""
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    rows = []
    for n, k in LAYERS:
        for m in TOKENS:
            case = Case(kernels, m, n, k)
            calls: dict[str, Callable[[], Any]] = {
                "sparse": case.ours(kernels, "gelu_s8", True),
                "dense_twin": case.ours(kernels, "gelu_s8", False),
                "sparse_s32": case.ours(kernels, "s32", True),
            }
            refused = {}
            for name, call in _peers(case).items():
                try:
                    call()
                    calls[name] = call
                except RuntimeError as error:
                    refused[name] = " ".join(str(error).split())[:120]
            choice = kernels.choose((m, n, k), multiprocessors)
            for state, buffer in (("warm", None), ("flushed", flush)):
                timed = times_us(calls, buffer)
                rows.append(
                    {
                        "m": m, "n": n, "k": k, "l2": state, "tile": choice[0] if choice else None,
                        "us": {name: round(statistics.median(t), 3) for name, t in timed.items()},
                        "spread_us": {name: round(max(t) - min(t), 3) for name, t in timed.items()},
                        "refused": refused,
                    }
                )  # fmt: skip
    return rows


def raw_rates(kernels: Kernels) -> dict[str, float]:
    """Tera multiply-adds a second of both instructions, and r, sparse over dense."""
    found = {}
    for kind, name in ((0, "sparse"), (1, "dense")):
        rate = ctypes.c_double()
        if kernels.library.edgekd_raw_rate(kind, ctypes.byref(rate)):
            sys.exit(f"the raw rate of the {name} instruction could not be measured")
        found[name] = rate.value * 1e-12
    return {**found, "r": found["sparse"] / found["dense"]}


def bandwidth() -> float:
    """Gigabytes a second that a copy of 1 GiB reads and writes, the best of a few."""
    one, two = (torch.empty(1 << 30, dtype=torch.int8, device="cuda") for _ in range(2))
    best = 0.0
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        two.copy_(one)
        end.record()
        torch.cuda.synchronize()
        best = max(best, 2 * one.numel() / start.elapsed_time(end) * 1e-6)
    return best


def _peers(case: Case) -> dict[str, Callable[[], Any]]:
    try:
        return case.peers()
    except RuntimeError as error:
        print(f"no peers at {case.sizes}: {' '.join(str(error).split())[:120]}", file=sys.stderr)
        return {}


def main() -> None:
    """Compare, time, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, required=True, help="libedgekd_kernels.so")
    parser.add_argument("--compare-only", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "bench/kernels/gpu.py: no CUDA device here; the emulator's tests are tests/kernels"
        )
    kernels = Kernels(arguments.library)
    properties = torch.cuda.get_device_properties(0)
    content: dict[str, Any] = {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "torch_cuda": torch.version.cuda,
        "equality": compare(kernels),
    }
    print(content["equality"], flush=True)
    content["raw_rates"] = raw_rates(kernels)
    print(content["raw_rates"], flush=True)
    if not arguments.compare_only:
        content["gigabytes_per_s"] = bandwidth()
        content["rows"] = [
            {**row, **roofline.shares(row, content["raw_rates"], content["gigabytes_per_s"])}
            for row in speed(kernels)
        ]
    name = "kernels-" + re.sub(r"[^a-z0-9]+", "-", properties.name.lower()).strip("-")
    covers = ("kernels/src", "kernels/include")
    print(results.write(name, "python bench/kernels/gpu.py --library ...", covers, content))


if __name__ == "__main__":
    main()
