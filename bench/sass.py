"""Machine code of GPU kernels, read without a GPU: how wide they access memory, where they wait, what fits on a card.

`read_kernels` disassembles the compiled extension or a cubin. As a command it prints a row of counters a kernel:

    python -m bench.sass FILE [PATTERN]
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

BLOCK = 256  # threads in a block (csrc/common/gpu_plan.h)
REGISTERS = 64 * 1024  # registers of a multiprocessor
THREADS = {80: 2048, 90: 2048, 100: 2048}  # maximum number of threads on a multiprocessor, by architecture
SHARED_KIB = {80: 164, 90: 228, 100: 228}  # shared memory of a multiprocessor, by architecture
INSTRUCTION = 16  # bytes
WIDTH = re.compile(r"\.(?:[USF]?(8|16)|(64|128))(?:\.|$)")  # bits of a memory access; 32 is not written


class Instruction(NamedTuple):
    address: int
    opcode: str  # example: "LDG.E.128.CONSTANT"
    target: int | None  # address that a branch or call goes to


class Kernel:
    """A kernel's instructions and resources, and the counters that tests hold to limits."""

    def __init__(self, name: str, arch: int, resources: dict[str, int], instructions: Sequence[Instruction]):
        self.name, self.arch = name, arch
        self.registers, self.shared = resources["REG"], resources["SHARED"]
        self.local = resources["STACK"] + resources["LOCAL"]  # bytes a thread
        self.instructions = instructions

    @cached_property
    def loops(self) -> list[list[Instruction]]:
        """Instructions of every loop: from the target of a backward branch to the branch.

        Not those that return from code for diverged warps, which lies at the kernel's end (BRA.DIV goes there).
        """
        branches = [i for i in self.instructions if i.opcode.startswith("BRA") and i.target is not None]
        returns = {
            next((i.address for i in branches if i.address >= away.target and i.opcode != "BRA.DIV"), None)
            for away in branches
            if away.opcode.startswith("BRA.DIV") and away.target > away.address
        }
        spans = {(i.target, i.address) for i in branches if i.target < i.address and i.address not in returns}
        return [[i for i in self.instructions if first <= i.address <= last] for first, last in sorted(spans)]

    @cached_property
    def hot(self) -> list[Instruction]:
        """The innermost loop that moves the most bytes an iteration, the shortest of equals; else the kernel."""
        moving = [body for body in self.loops if wide_bytes(body)]
        loops = [body for body in moving if not any(is_inside(other, body) for other in moving)]
        return max(loops, key=lambda body: (wide_bytes(body), -len(body)), default=self.instructions)

    @property
    def barriers(self) -> int:
        """Barriers that a block executes at most if no loop holds one; those in a loop count 1,000."""
        looped = {i.address for body in self.loops for i in body}
        return sum(1000 if i.address in looped else 1 for i in self.instructions if i.opcode.startswith("BAR"))

    @property
    def local_accesses(self) -> int:
        return sum(i.opcode.startswith(("LDL", "STL")) for i in self.instructions)

    @property
    def calls(self) -> int:
        """Calls in the hot loop, slow paths of divisions included."""
        after = self.hot[-1].address + INSTRUCTION  # on sm_80 a CALL may be a jump out of the loop
        found = [i for i in self.hot if i.opcode.startswith("CALL") and i.target != after]
        return len(found) if self.loops else 0

    @property
    def cost(self) -> float:
        """Instructions of the hot loop for each 16 bytes that it moves; 0 if all its accesses are narrow."""
        return 16 * len(self.hot) / wide_bytes(self.hot) if wide_bytes(self.hot) else 0.0

    def widths(self, space: str, hot: bool = True) -> Counter:
        """Number of accesses by bytes, in the hot loop or the whole kernel: {16: 3, 4: 1}. `space` is "LDG", ..."""
        return Counter(width(i.opcode) for i in (self.hot if hot else self.instructions) if i.opcode.startswith(space))

    def blocks(self, threads: int = BLOCK, dynamic_shared: int = 0) -> int:
        """Blocks that fit on a multiprocessor."""
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * threads)
        shared = -(-(self.shared + dynamic_shared) // 1024) * 1024  # 1 KiB of it is the system's
        by_shared = SHARED_KIB[self.arch] * 1024 // shared if shared else by_registers
        return min(by_registers, by_shared, THREADS[self.arch] // threads)


def width(opcode: str) -> int:
    """Bytes of a memory access."""
    bits = WIDTH.search(opcode)
    return int(bits[1] or bits[2]) // 8 if bits else 4


def is_inside(inner: Sequence[Instruction], outer: Sequence[Instruction]) -> bool:
    return outer[0].address < inner[0].address and inner[-1].address < outer[-1].address


def wide_bytes(body: Sequence[Instruction]) -> int:
    """Bytes of all accesses to global memory that move 8 bytes or more."""
    sizes = [width(i.opcode) for i in body if i.opcode.startswith(("LDG", "STG"))]
    return sum(size for size in sizes if size >= 8)


def parse(disassembly: str) -> list[Instruction]:
    """Instructions in the output of nvdisasm for code without labels."""
    instructions = []
    for line in disassembly.splitlines():
        if match := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\S+)([^;]*)", line):
            opcode, operands = match[2], match[3]
            target = re.search(r"\b0x([0-9a-f]+)\s*$", operands) if opcode.startswith(("BRA", "CALL")) else None
            instructions.append(Instruction(int(match[1], 16), opcode, int(target[1], 16) if target else None))
    return instructions


# Reading files -------------------------------------------------------------------------------------------------------


@cache
def tool(name: str) -> str | None:
    """Path of cuobjdump or nvdisasm: of the CUDA toolkit, else of Triton."""
    if found := shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin"):
        return found
    try:
        import triton
    except ImportError:
        return None
    path = Path(triton.__file__).with_name("backends") / "nvidia/bin" / name
    return str(path) if path.exists() else None


def why_unavailable() -> str | None:
    """Reason why machine code cannot be read here, for pytest.skip; None if it can."""
    missing = [name for name in ("cuobjdump", "nvdisasm") if tool(name) is None]
    return f"neither the CUDA toolkit nor Triton is here to provide {' and '.join(missing)}" if missing else None


@cache
def read_kernels(path: Path) -> list[Kernel]:
    """Kernels of a cubin, or of a library that embeds some; one of each name and architecture."""
    if path.suffix == ".cubin":
        cubins = [path.read_bytes()]
    else:
        with tempfile.TemporaryDirectory() as folder:
            run("cuobjdump", "-xelf", "all", str(path.resolve()), cwd=folder)
            cubins = [file.read_bytes() for file in sorted(Path(folder).glob("*.cubin"))]
    found = [kernel for kernels in read_cubins(cubins) for kernel in kernels]
    return list({(kernel.name, kernel.arch): kernel for kernel in found}.values())


def read_cubins(cubins: Iterable[bytes]) -> list[list[Kernel]]:
    """Kernels of each cubin.

    The code of all is disassembled together: nvdisasm takes longer to start than to read some kernels.
    """
    cubins = list(cubins)
    found: dict[bytes, list[Kernel]] = {cubin: [] for cubin in cubins}
    code: dict[int, list[tuple[bytes, str, bytes]]] = defaultdict(list)
    for cubin in found:
        arch, functions = read_elf(cubin)
        if functions:  # a linked extension has an empty cubin too
            code[arch] += [(cubin, name, text) for name, text in functions.items()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "code")
        used = {}
        for cubin in found:
            path.write_bytes(cubin)
            for name, numbers in re.findall(r"Function (\S+):\n(.*)", run("cuobjdump", "-res-usage", str(path))):
                used[cubin, name] = {key: int(number) for key, number in re.findall(r"\b([A-Z]+):(\d+)", numbers)}
        for arch, functions in code.items():
            path.write_bytes(b"".join(text for *_, text in functions))
            instructions = iter(parse(run("nvdisasm", "-b", f"SM{arch}", str(path))))
            names = plain_names(name for _, name, _ in functions)
            for plain_name, (cubin, name, text) in zip(names, functions, strict=True):
                body = list(islice(instructions, len(text) // INSTRUCTION))
                found[cubin].append(Kernel(plain_name, arch, used[cubin, name], body))
    return [found[cubin] for cubin in cubins]


def read_elf(cubin: bytes) -> tuple[int, dict[str, bytes]]:
    """Architecture of a cubin, and the code of its functions by name."""
    flags, table = struct.unpack_from("<I", cubin, 48)[0], struct.unpack_from("<Q", cubin, 40)[0]
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    text = {}
    for name, _, _, _, offset, length in sections:
        start = sections[names][4] + name
        label = cubin[start : cubin.index(b"\0", start)].decode()
        if label.startswith(".text."):
            text[label.removeprefix(".text.")] = cubin[offset : offset + length]
    version = cubin[8]  # of the ABI
    return flags >> 8 & 0xFF if version >= 8 else flags & 0xFF, text


def plain_names(mangled: Iterable[str]) -> Iterator[str]:
    """Names and template arguments of kernels: "nhwc<Element<4, 0, bf16, 8>, 8>"."""
    done = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    for name in done.stdout.splitlines():
        name = re.sub(r"fastgan::cuda::|fastgan::|\(anonymous namespace\)::|^void ", "", name)
        name = re.sub(r"\([\w:]+\)(-?\d)", r"\1", name).split("(")[0].replace("> >", ">>")
        for written, short in (("__nv_bfloat16", "bf16"), ("__half", "fp16"), ("float", "fp32"), ("double", "fp64")):
            name = re.sub(rf"\b{written}\b", short, name)
        yield name


def run(name: str, *arguments: str, cwd: str | None = None) -> str:
    return subprocess.run([tool(name), *arguments], capture_output=True, text=True, check=True, cwd=cwd).stdout


def main(path: str, pattern: str = "") -> None:
    if reason := why_unavailable():
        raise SystemExit(reason)
    row = "{:64} {:>4} {:>4} {:>4} {:>6} {:>5} {:>4} {:>6} {:>6}  {:24} {}"
    print(row.format("kernel", "sm", "reg", "b/SM", "shared", "local", "BAR", "call", "per16", "LDG", "STG (hot loop)"))
    for kernel in sorted(read_kernels(Path(path)), key=lambda kernel: kernel.name):
        if re.search(pattern, kernel.name):
            loads, stores = (dict(sorted(kernel.widths(space).items())) for space in ("LDG", "STG"))
            print(
                row.format(
                    kernel.name, kernel.arch, kernel.registers, kernel.blocks(), kernel.shared,
                    kernel.local + kernel.local_accesses, kernel.barriers, kernel.calls,
                    f"{kernel.cost:.1f}", str(loads), stores,
                )
            )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
