"""What kernels of attention share: blocks of tokens, products, parts of a sum."""
# Triton's functions have no types:
# mypy: allow-untyped-defs, allow-incomplete-defs
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 512  # wanted, so that the sums over tokens keep a GPU busy
MAX_PARTS = 64  # of a sum, which are added one after the other


@triton.jit
def product(a, b):
    return tl.dot(a, b, input_precision='ieee')


@triton.jit
def block_of_tokens(groups, N: tl.constexpr):
    """Group and first token of a program; the second axis of a grid ends at 65535."""
    return (tl.program_id(0) % groups).to(tl.int64), tl.program_id(0) // groups * N


@triton.jit
def rows(begin, end, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets and mask of rows ``width`` apart, ROWS from ``begin`` on."""
    index = begin + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    return (index[:, None].to(tl.int64) * width + column[None, :],
            (index < end)[:, None] & (column >= 0)[None, :])


@triton.jit
def load_rows(x, begin, end, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows in float32, zero in the padding."""
    offsets, mask = rows(begin, end, width, ROWS, COLUMNS)
    return tl.load(x + offsets, mask, 0.).to(tl.float32)


def split(tokens: int, step: int, groups: int, limit: int | None = None
          ) -> tuple[int, int]:
    """Split a sum over tokens into parts, each for a program.

    Args:
        tokens (int): Number of tokens.
        step (int): Tokens that a program takes at a time.
        groups (int): Number of such sums.
        limit (int, optional): Largest number of parts. Defaults to None, MAX_PARTS.

    Returns:
        tuple[int, int]: Number of parts, and tokens of a part.
    """
    steps = triton.cdiv(tokens, step)
    number = min(steps, limit or MAX_PARTS, triton.cdiv(PROGRAMS, max(1, groups)))
    part_steps = triton.cdiv(steps, number)
    return triton.cdiv(steps, part_steps), part_steps * step


def within_heads(x: Tensor) -> Tensor:
    """Copy only if the channels of a head are not next to each other."""
    return x if x.stride(-1) == 1 else x.contiguous()
