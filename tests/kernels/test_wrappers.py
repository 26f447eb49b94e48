"""Each wrapper of ``device.h``, compiled, is the PTX instruction it stands for: no CPU runs these.

The emulator has its own meaning of every name, so a wrapper that rounds towards zero, waits for one
group too many or exchanges two registers passes every test there. Here nvcc compiles a kernel of
one call, and its instructions are held to lines written by hand from the PTX ISA.

`make kernels` runs this, which has the compiler; `make test` leaves it out.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter

import pytest
from tiny import programs

from kernels.conftest import SOURCES

# Of each wrapper: parameters of a kernel, its body, and what must come of it. A second word tells
# two calls of one name apart. Registers have the parameters' names, those that are written t0, t1.
FOUR = "int d0, int d1, int d2, int d3"
READ = "uint32_t d[4];"
KEPT = "y[0] = d[0], y[1] = d[1], y[2] = d[2], y[3] = d[3];"
STORED = """
    st.global.u32 [y], t0
    st.global.u32 [y+4], t1
    st.global.u32 [y+8], t2
    st.global.u32 [y+12], t3"""
A = "uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3"
B = "uint32_t b0, uint32_t b1, uint32_t b2, uint32_t b3"
SUMS = "int d[4] = {d0, d1, d2, d3}; const uint32_t a[4] = {a0, a1, a2, a3};"
SUMMED = """
    st.global.u32 [y], d0
    st.global.u32 [y+4], d1
    st.global.u32 [y+8], d2
    st.global.u32 [y+12], d3"""
WRAPPERS = {
    "thread_index": ("int* y", "*y = thread_index();", """
    mov.u32 t0, %tid.x
    st.global.u32 [y], t0"""),
    "block_x": ("int* y", "*y = block_x();", """
    mov.u32 t0, %ctaid.x
    st.global.u32 [y], t0"""),
    "block_y": ("int* y", "*y = block_y();", """
    mov.u32 t0, %ctaid.y
    st.global.u32 [y], t0"""),
    "shared_base": ("uint32_t* y", "*y = shared_base();", """
    mov.u32 t0, _ZN6edgekd6sharedE
    st.global.u32 [y], t0"""),
    "barrier": ("", "barrier();", """
    bar.sync 0"""),
    "warp_barrier": ("", "warp_barrier();", """
    bar.warp.sync -1"""),
    "copy_async": ("uint32_t to, const void* from", "copy_async(to, from);", """
    cp.async.cg.shared.global [to], [from], 16"""),
    "commit_copies": ("", "commit_copies();", """
    cp.async.commit_group"""),
    "wait_copies 0": ("", "wait_copies<0>();", """
    cp.async.wait_group 0"""),
    "wait_copies 2": ("", "wait_copies<2>();", """
    cp.async.wait_group 2"""),
    "load_matrices": ("uint32_t from, uint32_t* y", READ + "load_matrices(d, from);" + KEPT, """
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {t0,t1,t2,t3}, [from]""" + STORED),
    "load_shared": ("uint32_t from, uint32_t* y", READ + "load_shared(d, from);" + KEPT, """
    ld.shared.v4.u32 {t0,t1,t2,t3}, [from]""" + STORED),
    "store_shared": (
        "uint32_t to, " + FOUR, "const int d[4] = {d0, d1, d2, d3}; store_shared(to, d);", """
    st.shared.v4.u32 [to], {d0,d1,d2,d3}"""),
    "load_weights": ("const void* from, uint32_t* y", READ + "load_weights(d, from);" + KEPT, """
    ld.global.nc.L1::no_allocate.v4.u32 {t0,t1,t2,t3}, [from]""" + STORED),
    "load_floats": ("const float* from, float* y", "float d[4]; load_floats(d, from);" + KEPT, """
    ld.global.nc.v4.f32 {t0,t1,t2,t3}, [from]""" + STORED.replace("u32", "f32")),
    "load_float": ("const float* from, float* y", "*y = load_float(from);", """
    ld.global.nc.f32 t0, [from]
    st.global.f32 [y], t0"""),
    "load_global": ("const void* from, uint32_t* y", READ + "load_global(d, from);" + KEPT, """
    ld.global.v4.u32 {t0,t1,t2,t3}, [from]""" + STORED),
    "store_global 2": (
        "void* to, uint32_t a0, uint32_t a1",
        "const uint32_t a[2] = {a0, a1}; store_global(to, a);", """
    st.global.v2.u32 [to], {a0,a1}"""),
    "store_global 4": (
        "void* to, " + A, "const uint32_t a[4] = {a0, a1, a2, a3}; store_global(to, a);", """
    st.global.v4.u32 [to], {a0,a1,a2,a3}"""),
    "mma_sparse": (
        f"{FOUR}, {A}, {B}, uint32_t e, int* y",
        SUMS + "const uint32_t b[4] = {b0, b1, b2, b3}; mma_sparse(d, a, b, e);" + KEPT, """
    mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 \
{d0,d1,d2,d3}, {a0,a1,a2,a3}, {b0,b1,b2,b3}, {d0,d1,d2,d3}, e, 0x0""" + SUMMED),
    "mma_dense": (
        f"{FOUR}, {A}, uint32_t b0, uint32_t b1, int* y", SUMS + "mma_dense(d, a, b0, b1);" + KEPT,
        """
    mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 \
{d0,d1,d2,d3}, {a0,a1,a2,a3}, {b0,b1}, {d0,d1,d2,d3}""" + SUMMED),
    "to_float": ("int a, float* y", "*y = to_float(a);", """
    cvt.rn.f32.s32 t0, a
    st.global.f32 [y], t0"""),
    "add": ("float a, float b, float* y", "*y = add(a, b);", """
    add.rn.f32 t0, a, b
    st.global.f32 [y], t0"""),
    "multiply": ("float a, float b, float* y", "*y = multiply(a, b);", """
    mul.rn.f32 t0, a, b
    st.global.f32 [y], t0"""),
    "multiply_add": ("float a, float b, float c, float* y", "*y = multiply_add(a, b, c);", """
    fma.rn.f32 t0, a, b, c
    st.global.f32 [y], t0"""),
    "divide": ("float a, float b, float* y", "*y = divide(a, b);", """
    div.rn.f32 t0, a, b
    st.global.f32 [y], t0"""),
    "absolute": ("float a, float* y", "*y = absolute(a);", """
    abs.f32 t0, a
    st.global.f32 [y], t0"""),
    "minimum": ("float a, float b, float* y", "*y = minimum(a, b);", """
    min.f32 t0, a, b
    st.global.f32 [y], t0"""),
    "maximum": ("float a, float b, float* y", "*y = maximum(a, b);", """
    max.f32 t0, a, b
    st.global.f32 [y], t0"""),
    "round_to_int": ("float a, int* y", "*y = round_to_int(a);", """
    cvt.rni.s32.f32 t0, a
    st.global.u32 [y], t0"""),
    "pack_saturated": (
        FOUR + ", uint32_t* y", "*y = pack_saturated(d0, d1, d2, d3);", """
    cvt.pack.sat.s8.s32.b32 upper, d3, d2, 0
    cvt.pack.sat.s8.s32.b32 t0, d1, d0, upper
    st.global.u32 [y], t0"""),
    "half_bits": ("float a, uint32_t* y", "*y = half_bits(a);", """
    cvt.rn.f16.f32 t0, a
    cvt.u32.u16 t1, t0
    st.global.u32 [y], t1"""),
    "from_half_bits": ("uint32_t a, float* y", "*y = from_half_bits(a);", """
    cvt.f32.f16 t0, a
    st.global.f32 [y], t0"""),
}  # fmt: skip


@pytest.fixture(scope="module")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Kernels of one call each, compiled as the Makefile compiles ours."""
    pytest.importorskip("nvidia.cu13", reason="needs nvcc: pip install 'edgekd[cuda]'")
    nvcc = programs.load("bench/kernels/compiled.py").tool("nvcc")
    folder = tmp_path_factory.mktemp("wrappers")
    lines = ['#include "device.h"', "using namespace edgekd;"]
    for call, (parameters, body, _) in WRAPPERS.items():
        lines.append(f'extern "C" __global__ void {entry(call)}({parameters}) {{ {body} }}')
    (folder / "calls.cu").write_text("\n".join(lines) + "\n")
    flags = ["-O3", "-std=c++17", "-fmad=false", f"-I{SOURCES / 'src'}", "-arch=compute_80", "-ptx"]
    command = [nvcc, *flags, "-o", str(folder / "calls.ptx"), str(folder / "calls.cu")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "calls.ptx").read_text()


def entry(call: str) -> str:
    return f"{call.replace(' ', '_')}_"


def instructions(ptx: str, call: str) -> list[str]:
    """Of one kernel; registers named after its parameters, or t0, t1 in the order of their use."""
    found = re.search(rf"\.entry {entry(call)}\(.*?\n\{{(.*?)\n\}}\n", ptx, re.DOTALL)
    assert found is not None
    body = re.sub(r"//.*|\{ *(?=\.reg)|\.reg [^;]*;|\}\s*$", "", found[1], flags=re.MULTILINE)
    parameters = [each.split()[-1].lstrip("*") for each in WRAPPERS[call][0].split(",") if each]
    names: dict[str, str] = {}
    lines: list[str] = []

    def named(match: re.Match[str]) -> str:
        written = sum(name[0] == "t" and name[1:].isdigit() for name in names.values())
        return names.setdefault(match[0], f"t{written}")

    for text in body.split(";"):
        line = re.sub(r"\{.*?\}", lambda four: four[0].replace(" ", ""), " ".join(text.split()))
        if given := re.match(r"ld\.param\.\w+ (%\w+), \[\w+_param_(\d+)\]", line):
            names[given[1]] = parameters[int(given[2])]
        elif same := re.match(r"cvta\.to\.global\.u64 (%\w+), (%\w+)", line):
            names[same[1]] = names[same[2]]
        elif line not in ("", "ret"):
            lines.append(re.sub(r"%(?!tid|ctaid)\w+", named, line))
    return lines


@pytest.mark.parametrize("call", WRAPPERS)
def test_a_wrapper_is_its_instruction(ptx: str, call: str) -> None:
    wanted = [line.strip() for line in WRAPPERS[call][2].strip().splitlines()]
    assert instructions(ptx, call) == wanted


def test_shared_memory_begins_where_the_swizzle_of_its_rows_does(ptx: str) -> None:
    assert ".extern .shared .align 128 .b8 _ZN6edgekd6sharedE[];" in ptx


def test_no_wrapper_is_left_out() -> None:
    text = (SOURCES / "src" / "device.h").read_text()
    named = Counter(re.findall(r"^EDGEKD_DEVICE .*?(\w+)\(", text, re.MULTILINE))
    assert set(named) == {call.split()[0] for call in WRAPPERS}
    for name, count in named.items():
        assert sum(call.split()[0] == name for call in WRAPPERS) >= count, name
