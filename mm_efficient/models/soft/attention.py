"""SOFT's attention through landmarks; see :mod:`.backbone`."""
import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn

from ..attention_maps import AttentionMap, Token
from ..layers import (
    LayerNorm,
    at_least_float32,
    autocast_disabled,
    contiguous,
    contiguous_float32,
    is_eager,
)
from .area_pooling import area_pool
from .gaussian_attention import gaussian_attention, gaussian_kernel, landmark_kernel
from .newton_inverse import (
    ONNX_STEPS,
    normalized_inverse,
    onnx_steps,
    regularized_inverse,
)

HEAD_DIMS = 32


class LandmarkInverse(nn.Module):
    """Pseudo-inverse of the kernel matrix of landmarks.

    Args:
        normalized (bool): Use the degree-normalised inverse.
    """

    onnx_function = True  # the same in all blocks
    onnx_form = staticmethod(onnx_steps)
    onnx_definitions = (ONNX_STEPS, )

    def __init__(self, normalized: bool):
        super().__init__()
        self.invert = normalized_inverse if normalized else regularized_inverse

    def forward(self, landmarks: Tensor) -> Tensor:
        """(B, heads, m, d) -> (B, heads, m, m)."""
        return self.invert(landmark_kernel(landmarks))


class GaussianAttention(nn.Module):
    """Attention ``K M (K^T v)``, see :func:`gaussian_attention`."""

    onnx_function = True  # the same in all stages

    def forward(self, query: Tensor, landmarks: Tensor, value: Tensor,
                inverse: Tensor) -> Tensor:
        """(B, heads, N, d), and m landmarks and their inverse -> (B, heads, N, d)."""
        return gaussian_attention(query, landmarks, value, inverse)


@register_notrace_module
class SOFTAttention(nn.Module):
    """Gaussian-kernel attention through landmarks, plus a convolution of the values.

    Queries serve as keys. All heads share the weights that turn queries into
    landmarks. Under autocast everything except the two projections and the
    convolution runs in float32: the inverse needs it, and sums over all tokens
    exceed the range of float16.

    Args:
        embed_dims (int): Channels C, heads of 32 channels.
        landmark_ratio (int): Tokens per landmark along each side, r.
        value_kernel (int): Kernel size of the value convolution.
        normalized (bool): Use the degree-normalised inverse.
        pretrain_grid (int, optional): Side of the token grid during pre-training,
            which bounds landmarks and the sum over tokens. None: no bound.
    """

    float32_only = True  # the inverse exceeds the range of float16

    def __init__(self, embed_dims: int, landmark_ratio: int, value_kernel: int,
                 normalized: bool, pretrain_grid: int | None):
        super().__init__()
        self.num_heads = embed_dims // HEAD_DIMS
        self.inverse = LandmarkInverse(normalized)
        self.mix = GaussianAttention()
        self.pretrain_grid = pretrain_grid
        self.q = nn.Linear(embed_dims, embed_dims)
        self.v = nn.Linear(embed_dims, embed_dims)
        self.landmark_conv = nn.Conv2d(HEAD_DIMS, HEAD_DIMS, landmark_ratio,
                                       landmark_ratio, bias=False)
        self.landmark_norm = LayerNorm(HEAD_DIMS)
        # One filter per head, applied to all channels of the head
        self.value_conv = nn.Conv2d(self.num_heads, self.num_heads, value_kernel,
                                    padding=value_kernel // 2,
                                    groups=self.num_heads, bias=False)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        query = self.q(x) * HEAD_DIMS**-0.25
        value = self.v(x)
        local = self._convolve(value)
        with autocast_disabled(x):
            out = self._split_channels(local) + self._attend(query, value)
            # Weights may have been converted to half precision; those of a linear layer
            # also to integers, and to no tensor at all
            return self.proj(out.flatten(-2).to(self.landmark_conv.weight.dtype))

    def attention_maps(self, x: Tensor, token: Token) -> list[AttentionMap]:
        """The token's row of the attention matrix, and its kernel to the landmarks.

        See :class:`~mm_efficient.models.attention_maps.Mappable`. Rows of the
        attention matrix may be negative.
        """
        query = self.q(x) * HEAD_DIMS**-0.25
        landmarks, inverse = self._landmarks_and_inverse(query)
        kernel = gaussian_kernel(self._split_heads(query), landmarks)[0]
        own = kernel[:, token.index, None]  # of (heads, N, m) the token's (heads, 1, m)
        row = own @ inverse[0] @ kernel.transpose(1, 2)  # (heads, 1, N)
        ratio = self.landmark_conv.stride[0]
        grid = [size // ratio for size in token.grid]
        extent = grid[0] * ratio * token.stride, grid[1] * ratio * token.stride
        if self.pretrain_grid:
            grid = [min(size, self.pretrain_grid // ratio) for size in grid]
        return [
            AttentionMap('attention of the token', row[:, 0].unflatten(-1, token.grid),
                         token.extent, signed=True),
            AttentionMap('Gaussian kernel to the landmarks',
                         own[:, 0].unflatten(-1, grid), extent),
        ]

    def _attend(self, query: Tensor, value: Tensor) -> Tensor:
        """(B, h, w, C), twice -> (B, h, w, heads, d)."""
        landmarks, inverse = self._landmarks_and_inverse(query)
        out = self.mix(self._split_heads(query), landmarks, self._split_heads(value),
                       inverse)
        return out.unflatten(2, query.shape[1:3]).permute(0, 2, 3, 1, 4)

    def _landmarks_and_inverse(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """(B, h, w, C) -> (B, heads, m, d) and (B, heads, m, m)."""
        landmarks = self._landmarks(query)
        inverse = self.inverse(landmarks)
        tokens = query.shape[1] * query.shape[2]
        if self.pretrain_grid and not (is_eager() and tokens == self.pretrain_grid**2):
            inverse = inverse * (self.pretrain_grid**2 / tokens)
        return landmarks, inverse

    def _landmarks(self, query: Tensor) -> Tensor:
        """Compute a landmark per r x r tokens, (B, h, w, C) -> (B, heads, m, d)."""
        conv = self.landmark_conv
        # All heads at once; tokens beyond a multiple of r get none, as published
        weight = conv.weight.expand(self.num_heads, -1, -1, -1, -1)
        landmarks = F.conv2d(query.permute(0, 3, 1, 2), _copied(weight, query),
                             stride=conv.stride, groups=self.num_heads)
        landmarks = landmarks.permute(0, 2, 3, 1)  # (B, rows, columns, C)
        if self.pretrain_grid:
            bound = self.pretrain_grid // conv.stride[0]
            rows, columns = landmarks.shape[1:3]
            if not (is_eager() and max(rows, columns) <= bound):
                landmarks = area_pool(at_least_float32(landmarks),
                                      _minimum(rows, bound), _minimum(columns, bound))
        landmarks = contiguous_float32(self._split_heads(landmarks))
        return F.gelu(self.landmark_norm(landmarks))

    def _split_channels(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, heads, d)."""
        return x.unflatten(-1, (self.num_heads, -1))

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, heads, h * w, d)."""
        # -1 makes shorter graphs, but is ambiguous for a batch without images
        tokens = x.shape[1] * x.shape[2] if is_eager() else -1
        x = x.reshape(x.shape[0], tokens, self.num_heads, HEAD_DIMS)
        return x.transpose(1, 2)

    def _convolve(self, value: Tensor) -> Tensor:
        weight = self.value_conv.weight[:, None].expand(-1, HEAD_DIMS, -1, -1, -1)
        out = F.conv2d(value.permute(0, 3, 1, 2), _copied(weight, value),
                       padding=self.value_conv.padding, groups=value.shape[-1])
        return out.permute(0, 2, 3, 1)


def _copied(weight: Tensor, x: Tensor) -> Tensor:
    """Copy a repeated weight in the type of ``x``, (a, b, ...) -> (a * b, ...)."""
    return contiguous(weight, x.dtype).flatten(0, 1)


def _minimum(size: int, bound: int) -> int:
    """``min`` that keeps dynamic sizes symbolic during export."""
    if isinstance(size, torch.SymInt):
        return torch.sym_min(size, bound)
    if isinstance(size, Tensor):  # while tracing to TorchScript
        return size.clamp(max=bound)
    return min(size, bound)
