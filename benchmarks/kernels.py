"""The Triton kernels compiled ahead for GPUs that need not be there: registers, spills, memory.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --targets 90 --particles 128

Compiles each kernel of ``jetzoo.attention.triton_kernel`` as a training step of ParT calls it (pair
bias and its gradient, mask, dropout, heads of 16) and has ``ptxas`` say what it takes. Writes
``results/kernels_cuda.csv`` beside this file.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import torch
from common import argument_parser, write_csv

from jetzoo import UserError

SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024}  # bytes of a block, CUDA programming guide
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# Pointers to something else than the numbers of a dtype.
OTHER_POINTERS = {
    "Mask": "*u8",
    "Lengths": "*i32",
    "Seed": "*i64",
    "Lse": "*fp32",
    "Delta": "*fp32",
    "DBias": "*fp32",
}


def signature(kernel, dtype, constants):
    """Type of each argument of a kernel, as Triton writes them."""
    types = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name in OTHER_POINTERS:
            types[name] = OTHER_POINTERS[name]
        elif name in ("scale", "dropout_p"):
            types[name] = "fp32"
        elif name[0].isupper() and name not in ("H", "L", "S", "D"):
            types[name] = f"*{TYPES[dtype]}"
        else:
            types[name] = "i32"
    return types


def compile_kernel(kernel, dtype, length, capability):
    """What one kernel takes on one kind of GPU, as a row of the CSV."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from jetzoo.attention.triton_kernel import _arguments

    q = torch.empty(1, 8, length, 16, dtype=dtype, device="meta")
    arguments = _arguments(q, q, True, True, 0.1) | {"BIAS_GRAD": True}
    constants = {k: v for k, v in arguments.items() if k.isupper() and len(k) > 1}
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    # As the launcher finds them: memory of PyTorch is aligned, and rows of heads are.
    aligned = [["tt.divisibility", 16]]
    types = signature(kernel, dtype, constants)
    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    attributes = {places[name]: aligned for name, kind in types.items() if kind[0] == "*"}
    source = ASTSource(
        kernel, types, {places[name]: x for name, x in constants.items()}, attributes
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    registers, spills = assembled(compiled.asm["ptx"], capability)
    return {
        "kernel": kernel.__name__.strip("_"),
        "target": f"sm_{capability}",
        "dtype": str(dtype).removeprefix("torch."),
        "particles": length,
        "warps": compiled.metadata.num_warps,
        "registers": registers,
        "spill_bytes": spills,
        "shared_bytes": compiled.metadata.shared,
        "shared_limit": SHARED_LIMITS[capability],
        "triton": triton.__version__,
    }


def assembled(ptx, capability):
    """Registers of a thread and bytes that it spills, by ptxas."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        target = re.search(r"\.target (sm_\w+)", ptx).group(1)
        said = subprocess.run(
            [knobs.nvidia.ptxas.path, "-v", f"--gpu-name={target}", str(path), "-o", "/dev/null"],
            check=True,
            capture_output=True,
            text=True,
        ).stderr
    registers = int(re.search(r"Used (\d+) registers", said).group(1))
    spills = [int(x) for x in re.findall(r"(\d+) bytes spill", said)]
    return registers, sum(spills)


def measure(targets, particles, dtypes):
    """Rows of the CSV."""
    try:
        from jetzoo.attention import triton_kernel
    except ImportError as error:
        raise UserError(f"The Triton kernels need Triton: {error}.") from error
    kernels = ("_forward_kernel", "_queries_kernel", "_keys_kernel")
    for capability in targets:
        for dtype in dtypes:
            for length in particles:
                for name in kernels:
                    yield compile_kernel(getattr(triton_kernel, name), dtype, length, capability)


def main():
    """Run the command line."""
    parser = argument_parser(__doc__, figures=False)
    parser.add_argument(
        "--targets", type=int, nargs="+", default=[80, 90], choices=SHARED_LIMITS, metavar="SM"
    )
    parser.add_argument("--particles", type=int, nargs="+", default=[16, 128], metavar="N")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"]
    )
    args = parser.parse_args()
    rows = []
    for row in measure(args.targets, args.particles, [getattr(torch, x) for x in args.dtypes]):
        rows.append(row)
        print(row, flush=True)
    write_csv(args.results / "kernels_cuda.csv", rows)


if __name__ == "__main__":
    main()
