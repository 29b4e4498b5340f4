"""Interface of attention modules whose attention can be visualised.

A family's attention module has a method ``attention_maps`` (:class:`Mappable`), which
computes maps from the module's input.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor


@dataclass(frozen=True)
class Token:
    """The query token whose attention is shown.

    Args:
        row (int): Row in the grid of tokens.
        column (int): Column in the grid.
        grid (tuple[int, int]): Rows h and columns w of the grid.
        stride (int): Pixels per token and side.
    """
    row: int
    column: int
    grid: tuple[int, int]
    stride: int

    @property
    def index(self) -> int:
        """Place in the sequence of tokens, row by row."""
        return self.row * self.grid[1] + self.column

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width in pixels of the area that the grid covers."""
        return self.grid[0] * self.stride, self.grid[1] * self.stride


@dataclass
class AttentionMap:
    """One kind of map of an attention module.

    Args:
        title (str): Description of the values.
        values (Tensor): One map per head, or per channel, (M, h, w).
        extent (tuple[int, int]): Height and width in pixels that the maps cover, from
            the top left corner of the image.
        signed (bool): Whether values may be negative, so that colours are centred on
            zero. Defaults to False.
        parts (str): What each of the M maps belongs to. Defaults to 'head'.
        order (Sequence[int], optional): Indices of the maps in the order to show them.
            Defaults to None, unchanged.
        summary (Tensor, optional): All maps in one, (h, w). Defaults to None, their
            mean.
        summary_title (str): Description of the summary. Defaults to 'mean of heads'.
        by_token (bool): Whether the map depends on the token. Defaults to True.
    """
    title: str
    values: Tensor
    extent: tuple[int, int]
    signed: bool = False
    parts: str = 'head'
    order: Sequence[int] | None = None
    summary: Tensor | None = None
    summary_title: str = 'mean of heads'
    by_token: bool = True

    def __post_init__(self) -> None:
        if len(self.values) == 1:
            self.summary_title = f'the only {self.parts}'
        if self.summary is None:
            self.summary = self.values.mean(0)
        if self.order is None:
            self.order = range(len(self.values))


@runtime_checkable
class Mappable(Protocol):
    """An attention module whose attention can be shown."""

    def attention_maps(self, x: Tensor, token: Token) -> list[AttentionMap]:
        """Compute the maps of one image.

        Args:
            x (Tensor): Input of the module, for one image.
            token (Token): The query token, in the grid of ``x``; ignored by families
                whose attention is not computed per token.

        Returns:
            list[AttentionMap]: At least one.
        """


def softmax_rows(attn: MultiheadAttention, x: Tensor, indices: list[int]) -> Tensor:
    """Rows of the softmax attention matrices.

    Args:
        attn (MultiheadAttention): The module, for its projection.
        x (Tensor): Tokens, (1, N, C).
        indices (list[int]): Rows to return.

    Returns:
        Tensor: (heads, len(indices), N).
    """
    qkv = attn.qkv(x)[0].unflatten(-1, (3, attn.num_heads, -1))  # (N, 3, heads, d)
    query, key, _ = qkv.permute(1, 2, 0, 3)  # (heads, N, d)
    scores = query[:, indices] @ key.transpose(1, 2) * attn.head_dims**-0.5
    return scores.softmax(-1)
