"""Stages, blocks and attention of EcoFormer, on feature maps (B, h, w, C)."""
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmpretrain.models.utils import MultiheadAttention
from timm.models import register_notrace_module
from torch import Tensor, nn

from ..attention_maps import AttentionMap, Token, softmax_rows
from ..base import run_blocks
from ..layers import LayerNorm, at_least_float32, autocast_disabled
from ..recomputing import gelu_then
from .hash_fitting import fit_hash_functions
from .kernel_hashing import attend_by_codes, hash_codes

NUM_ANCHORS = 25  # per head
NUM_BITS = 16


@register_notrace_module
class HashAttention(nn.Module):
    """Attention with binary codes; queries serve as keys.

    The hash functions are buffers: ``anchors`` (H, 25, d), ``kernel_mean``
    (H, 1, 25) and ``projection`` (H, 16, 25). Until :meth:`fit` or a checkpoint sets
    them, all tokens have the same code and the output is useless.

    Hashing and sums over tokens run in float32 under autocast: a sum of codes grows to
    the number of tokens, which exceeds float16 at detection size.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Number of heads H.
    """

    float32_only = True  # sums over tokens exceed the range of float16

    def __init__(self, embed_dims: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        head_dims = embed_dims // num_heads
        self.anchors: Tensor
        self.kernel_mean: Tensor
        self.projection: Tensor
        self.qk = nn.Linear(embed_dims, embed_dims)
        self.v = nn.Linear(embed_dims, embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.register_buffer('anchors', torch.zeros(num_heads, NUM_ANCHORS, head_dims))
        self.register_buffer('kernel_mean', torch.zeros(num_heads, 1, NUM_ANCHORS))
        self.register_buffer('projection',
                             torch.randn(num_heads, NUM_BITS, NUM_ANCHORS))

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        query, value = (self._split_heads(linear(x)) for linear in (self.qk, self.v))
        out = attend_by_codes(query, value, self.anchors, self.kernel_mean,
                              self.projection)  # (B, N, H, d)
        return self.proj(out.view(x.shape))

    def attention_maps(self, x: Tensor, token: Token) -> list[AttentionMap]:
        """Similarity of all hash codes to those of the token, from -1 to 1.

        See :class:`~mm_efficient.models.attention_maps.Mappable`.
        """
        query = self._split_heads(self.qk(x))
        codes = hash_codes(query, self.anchors, self.kernel_mean, self.projection)[:, 0]
        row = codes[:, token.index, None] @ codes.transpose(1, 2)  # (H, 1, N)
        similarity = row[:, 0].unflatten(-1, token.grid) / NUM_BITS
        return [AttentionMap('similarity of hash codes', similarity, token.extent,
                             signed=True)]

    def count_operations(self, shape: Sequence[int]) -> tuple[int, int]:
        """Count the operations that replace softmax attention.

        Linear layers are not included. By the published rules
        (https://github.com/ziplab/EcoFormer), with N tokens, H heads of d channels, m
        anchors and b bits: H N (2 m + m b + b + 1 + d)
        multiplications and H N (2 m d + m b + 2 b + 2 b d + d) additions, because
        products with binary codes are sums.

        Args:
            shape (Sequence[int]): Shape of the input, (B, h, w, C).

        Returns:
            tuple[int, int]: Multiplications and additions.
        """
        m, b, d = NUM_ANCHORS, NUM_BITS, shape[-1] // self.num_heads
        tokens = math.prod(shape[:-1]) * self.num_heads  # N H, of all images
        return (tokens * (2 * m + m * b + b + 1 + d),
                tokens * (2 * m * d + m * b + 2 * b + 2 * b * d + d))

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, N, H, d)."""
        return x.flatten(1, 2).unflatten(-1, (self.num_heads, -1))

    @torch.no_grad()
    def fit(self, inputs: Sequence[Tensor], max_tokens: int,
            generator: torch.Generator) -> None:
        """Fit the hash functions.

        Args:
            inputs (Sequence[Tensor]): Batches of inputs of :meth:`forward`,
                (B, h, w, C).
            max_tokens (int): Tokens per image in the quadratic part.
            generator (torch.Generator): CPU generator that draws anchors and tokens.

        Raises:
            ValueError: If there are fewer tokens than anchors.
        """
        queries = [at_least_float32(self._split_heads(self.qk(x))) for x in inputs]
        with autocast_disabled(queries[0]):
            fitted = fit_hash_functions(queries, at_least_float32(self.projection),
                                        NUM_ANCHORS, max_tokens, generator)
        for buffer, value in zip((self.anchors, self.kernel_mean, self.projection),
                                 fitted):
            buffer.copy_(value)


@register_notrace_module
class SoftmaxAttention(MultiheadAttention):
    """Softmax attention between all tokens of a feature map."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        return super().forward(x.flatten(1, 2)).view(x.shape)

    def attention_maps(self, x: Tensor, token: Token) -> list[AttentionMap]:
        """Softmax row of the token.

        See :class:`~mm_efficient.models.attention_maps.Mappable`.
        """
        row, = softmax_rows(self, x.flatten(1, 2), [token.index]).unbind(1)
        return [AttentionMap('softmax of the token', row.unflatten(-1, token.grid),
                             token.extent)]


class ConvMlp(nn.Module):
    """MLP with a depthwise 3 x 3 convolution before its activation.

    Args:
        embed_dims (int): Channels C.
        ratio (int): Hidden width over C.
    """

    def __init__(self, embed_dims: int, ratio: int):
        super().__init__()
        hidden = ratio * embed_dims
        self.fc1 = nn.Linear(embed_dims, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        x = self.dwconv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return gelu_then(self.fc2, x)


class PositionConv(nn.Module):
    """Conditional position encoding: adds a depthwise 3 x 3 convolution.

    Args:
        embed_dims (int): Channels C.
    """

    def __init__(self, embed_dims: int):
        super().__init__()
        self.conv = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        return x + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PatchEmbed(nn.Module):
    """Strided convolution and layer norm; sizes round up.

    Args:
        in_dims (int): Channels of the input.
        embed_dims (int): Channels C.
        kernel (int): Kernel size. If it equals the stride, patches do not overlap and
            the input is zero-padded to whole patches; otherwise padding is kernel // 2.
        stride (int): Stride.
    """

    def __init__(self, in_dims: int, embed_dims: int, kernel: int, stride: int):
        super().__init__()
        padding = 0 if kernel == stride else kernel // 2
        self.proj = nn.Conv2d(in_dims, embed_dims, kernel, stride, padding)
        self.norm = LayerNorm(embed_dims)
        # Zeros after the last row and column; incomplete patches are dropped. A fixed
        # number keeps exports simple.
        self.zeros = stride - 1 if kernel == stride else 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""
        if self.zeros:
            x = F.pad(x, (0, self.zeros, 0, self.zeros))
        return self.norm(self.proj(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Patch embedding and blocks, all on (B, h, w, C).

    Args:
        downsample (nn.Module): Downsamples the output of the previous stage.
        blocks (Sequence[nn.Module]): Blocks.
        pos_conv (nn.Module, optional): Position encoding after the first block.
        norm (nn.Module, optional): Norm after the last block.
        with_cp (bool): Recompute blocks in the backward pass.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module],
                 pos_conv: nn.Module | None, norm: nn.Module | None, with_cp: bool):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.pos_conv = pos_conv
        self.norm = norm
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, h, w)."""
        x = run_blocks(self._layers(), self._to_channels_last(x), self.with_cp)
        return self._to_channels_first(x)

    def fit(self, maps: Sequence[Tensor],
            fit_attention: Callable[[HashAttention, Sequence[Tensor]], None]
            ) -> list[Tensor]:
        """Fit the hash functions block by block.

        Args:
            maps (Sequence[Tensor]): Batches of inputs of :meth:`forward`.
            fit_attention (Callable): Fits an attention module to batches of its input.

        Returns:
            list[Tensor]: Outputs of :meth:`forward` once fitted.
        """
        maps = [self._to_channels_last(x) for x in maps]
        for layer in self._layers():
            if isinstance(layer, Block) and isinstance(layer.attn, HashAttention):
                fit_attention(layer.attn, [layer.norm1(x) for x in maps])
            maps = [layer(x) for x in maps]
        return [self._to_channels_first(x) for x in maps]

    def _layers(self) -> list[nn.Module]:
        first, *others = self.blocks
        return [first, *([self.pos_conv] if self.pos_conv else []), *others]

    def _to_channels_last(self, x: Tensor) -> Tensor:
        return self.downsample(x).permute(0, 2, 3, 1)

    def _to_channels_first(self, x: Tensor) -> Tensor:
        return (self.norm(x) if self.norm else x).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Pre-norm transformer block on (B, h, w, C).

    Args:
        embed_dims (int): Channels C.
        attn (nn.Module): Attention.
        mlp (nn.Module): MLP.
        drop_path_rate (float): Rate of stochastic depth.
    """

    def __init__(self, embed_dims: int, attn: nn.Module, mlp: nn.Module,
                 drop_path_rate: float):
        super().__init__()
        self.norm1 = LayerNorm(embed_dims, eps=1e-6)
        self.attn = attn
        self.norm2 = LayerNorm(embed_dims, eps=1e-6)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))
