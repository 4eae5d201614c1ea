"""4-bit products for a few rows: the CUDA source, compiled for the CPU with stand-ins for what warps do together
(`cuda_on_cpu.h`), against products with weights that are unpacked step by step."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch

pytest.importorskip("triton")
CODE = tuple(bnb.get_4bit_type("nf4", device="cpu").tolist())
P, I32, F64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_double
RUNS = """
#define RUN_LINEAR(T, KIND) extern "C" void run_linear_##KIND##_##T(int wide, int high, const u16 *x, PACKED(), \\
    const u16 *low, const float *b, const u16 *bias, u16 *out, double scale, int M, int N, int K, int rank, int biased) \\
    { run(wide, high, [&] { linear_##KIND##_##T(x, words, packed, plain, outer, numbers, offset, low, b, bias, out, \\
        scale, M, N, K, rank, biased); }); }
#define RUN_EXPERTS(KIND) extern "C" void run_gate_up_##KIND(int wide, int high, const u16 *x, const i64 *keys, \\
    const float *weight, PACKED(), LORA, u16 *out, int pairs, int I, int K, int k, int by_pair) \\
    { run(wide, high, [&] { gate_up_##KIND(x, keys, weight, words, packed, plain, outer, numbers, offset, low, b, rank, \\
        of_expert, of_row, of_rank, out, pairs, \\
        I, K, k, by_pair); }); } \\
    extern "C" void run_down_##KIND(int wide, int high, const u16 *x, const i64 *keys, PACKED(), LORA, u16 *out, \\
    int pairs, int N, int K, int by_pair) \\
    { run(wide, high, [&] { down_##KIND(x, keys, words, packed, plain, outer, numbers, offset, low, b, rank, of_expert, \\
        of_row, of_rank, out, pairs, N, K, by_pair); }); }
RUN_LINEAR(1, nested) RUN_LINEAR(2, nested) RUN_LINEAR(4, nested) RUN_LINEAR(1, plain) RUN_LINEAR(4, plain)
RUN_EXPERTS(nested) RUN_EXPERTS(plain)
extern "C" void run_gated_2(int wide, int high, const u16 *x, PACKED(gate_), PACKED(up_), u16 *out, int M, int N, int K)
{ run(wide, high, [&] { gated_2(x, gate_words, gate_packed, gate_plain, gate_outer, gate_numbers, gate_offset, up_words,
    up_packed, up_plain, up_outer, up_numbers, up_offset, out, M, N, K); }); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    from workbench.models.quantized.few_rows_kernels import source

    if not shutil.which("g++"):
        pytest.skip("there is no g++")
    folder = tmp_path_factory.mktemp("few_rows")
    text = source(CODE, torch.bfloat16)
    program = f'#include "{Path(__file__).with_name("cuda_on_cpu.h")}"\n{text}\n{RUNS}'
    (folder / "few_rows.cpp").write_text(program)
    command = ["g++", "-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread", "few_rows.cpp", "-o", "few_rows.so"]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    return ctypes.CDLL(str(folder / "few_rows.so"))


def packed(shape, nested):
    """`(arguments of a kernel, the weights that they stand for)`."""
    from workbench.models.quantized.few_rows_kernels import fitting_numbers

    data, state = bnb.quantize_4bit(torch.randn(shape) * 0.1, quant_type="nf4", compress_statistics=nested)
    numbers, factor = fitting_numbers(CODE, torch.bfloat16)
    flat = data.view(-1).long()
    values = (torch.tensor(numbers) * factor)[torch.stack([flat >> 4, flat & 15], 1)].view(-1, 64)
    if nested:
        outer = state.state2
        absmax = outer.code[state.absmax.long()] * outer.absmax.repeat_interleave(256)[: len(state.absmax)]
        absmax = absmax + state.offset
        tensors = [data, state.absmax, state.absmax, outer.absmax, outer.code, state.offset]
    else:
        absmax = state.absmax
        tensors = [data, *[absmax] * 5]
    return tensors, (values * absmax[:, None]).view(shape)


def call(function, grid, *arguments):
    kept = [a.contiguous() if isinstance(a, torch.Tensor) else a for a in arguments]
    as_c = [
        P(a.data_ptr()) if isinstance(a, torch.Tensor) else F64(a) if isinstance(a, float) else I32(a) for a in kept
    ]
    function(I32(grid[0]), I32(grid[1]), *as_c)


def close(found, want, allowed=4e-3):
    assert torch.isfinite(found.float()).all()
    assert (found.float() - want).norm() <= allowed * want.norm()


@pytest.mark.parametrize(
    "kind, tiles, rows, out, width",
    [("nested", 1, 1, 40, 192), ("nested", 2, 11, 16, 2112), ("nested", 4, 45, 33, 64), ("plain", 4, 20, 16, 128)],
)
def test_linear(library, kind, tiles, rows, out, width):
    torch.manual_seed(0)
    tensors, weight = packed((out, width), kind == "nested")
    x, low, bias = (torch.randn(s).bfloat16() for s in ((rows, width), (rows, 5), (out,)))
    b, found = torch.randn(out, 5), torch.full((rows, out), torch.nan).bfloat16()
    function = getattr(library, f"run_linear_{kind}_{tiles}")
    grid = -(-out // 16), -(-rows // (8 * tiles))
    call(function, grid, x, *tensors, low, b, bias, found, 0.5, rows, out, width, 5, 1)
    product = x.float() @ weight.t()
    close(found, product + 0.5 * low.float() @ b.t() + bias.float())
    call(function, grid, x, *tensors, low, b, bias, found, 0.5, rows, out, width, 0, 0)
    close(found, product)


def test_a_row_is_the_same_alone_and_in_company(library):
    torch.manual_seed(1)
    tensors, _ = packed((32, 320), True)
    x = torch.randn(32, 320).bfloat16()
    together, alone = torch.zeros(32, 32).bfloat16(), torch.zeros(1, 32).bfloat16()
    call(library.run_linear_nested_4, (2, 1), x, *tensors, x, x, x, together, 1.0, 32, 32, 320, 0, 0)
    for row in (0, 7, 19, 31):
        call(library.run_linear_nested_1, (2, 1), x[row : row + 1], *tensors, x, x, x, alone, 1.0, 1, 32, 320, 0, 0)
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize(
    "kind, rows, experts, rank", [("nested", 1, 6, 0), ("plain", 9, 5, 0), ("nested", 20, 7, 0), ("nested", 3, 4, 5)]
)
def test_experts(library, kind, rows, experts, rank):
    torch.manual_seed(2)
    k, width, inner = 3, 128, 64
    up, gate_up = packed((experts, 2 * inner, width), kind == "nested")
    down, out_of = packed((experts, width, inner), kind == "nested")
    x, weight = torch.randn(rows, width).bfloat16(), torch.rand(rows, k)
    index = torch.stack([torch.randperm(experts)[:k] for _ in range(rows)])
    pairs, by_pair = rows * k, int(rows * k <= experts)
    grid = pairs if by_pair else experts
    gated, found = torch.full((pairs, inner), torch.nan).bfloat16(), torch.full((pairs, width), torch.nan).bfloat16()
    expert = index.flatten()
    # B as PEFT has it: [out, r, E], seen as [E, out, r]
    up_b, down_b = (torch.randn(out, rank, experts).permute(2, 0, 1) * 0.1 for out in (2 * inner, width))
    lows = [torch.randn(pairs, rank).bfloat16() for _ in range(2)]
    of_up, of_down = ([low, b.permute(1, 2, 0), rank, *b.stride()] for low, b in zip(lows, (up_b, down_b), strict=True))
    call(
        getattr(library, f"run_gate_up_{kind}"), (grid, inner // 16), x, index, weight, *up, *of_up, gated, pairs, inner,
        width, k, by_pair,
    )  # fmt: skip
    want = torch.empty(pairs, inner)
    for pair in range(pairs):
        both = gate_up[expert[pair]] @ x[pair // k].float() + up_b[expert[pair]] @ lows[0][pair].float()
        gate, other = both.chunk(2)
        want[pair] = torch.nn.functional.silu(gate) * other * weight[pair // k, pair % k]
    close(gated, want, 8e-3)
    call(
        getattr(library, f"run_down_{kind}"), (grid, width // 16), gated, index, *down, *of_down, found, pairs, width, inner,
        by_pair,
    )  # fmt: skip
    want = torch.einsum("poi,pi->po", out_of[expert], gated.float())
    close(found, want + torch.einsum("por,pr->po", down_b[expert], lows[1].float()))


def test_gated_layers(library):
    torch.manual_seed(3)
    rows, inner, width = 11, 40, 192
    (gate, gate_weight), (up, up_weight) = packed((inner, width), True), packed((inner, width), True)
    x, found = torch.randn(rows, width).bfloat16(), torch.full((rows, inner), torch.nan).bfloat16()
    call(library.run_gated_2, (3, 1), x, *gate, *up, found, rows, inner, width)
    want = torch.nn.functional.silu(x.float() @ gate_weight.t()) * (x.float() @ up_weight.t())
    close(found, want, 8e-3)


@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 7e-4), (torch.float16, 1e-4)])
def test_numbers_fit_the_codes_better_than_rounding_alone(dtype, most):
    from workbench.models.quantized.few_rows_kernels import fitting_numbers

    numbers, factor = fitting_numbers(CODE, dtype)
    exact = torch.tensor(CODE, dtype=torch.float64)
    found = torch.tensor(numbers, dtype=torch.float64) * factor
    assert all(one == float(torch.tensor(one).to(dtype)) for one in numbers)
    assert (found - exact).norm() / exact.norm() < most
    assert (found - exact).norm() < (exact.to(dtype).double() - exact).norm()
