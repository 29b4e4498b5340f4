"""Efficient additive attention (SwiftFormer) on feature maps.

All queries are combined into one global query, which gates the keys. Tokens do not
interact pairwise, so compute is linear in their number N = H * W. Feature maps are
never reshaped into token sequences. See https://arxiv.org/abs/2303.15446.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import autocast_disabled, in_float32


def unit(x: Tensor) -> Tensor:
    """Scale vectors to unit length, in float32 without a cast of their own.

    Args:
        x (Tensor): (..., C).

    Returns:
        Tensor: (..., C), float32 or float64.
    """
    with autocast_disabled(x):
        norm = torch.linalg.vector_norm(
            x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        # The bound of F.normalize, a literal: compilers take a global float for an
        # input of the graph
        return x / norm.clamp_min(1e-12)


@in_float32
def global_query(query: Tensor, weight: Tensor) -> Tensor:
    """Sum all queries, weighted by their L2-normalised scores.

    The scores have unit norm over all tokens, so any positive factor of ``weight``
    cancels and the result grows with the square root of N. In half precision the lower
    bound on the norm, 1e-12, would underflow to 0.

    Args:
        query (Tensor): Queries, (B, H, W, C), in any memory layout.
        weight (Tensor): Direction that scores a query, (C, 1).

    Returns:
        Tensor: (B, 1, 1, C).
    """
    query = query.flatten(1, 2)  # (B, N, C), a view also of a (B, C, H, W) map
    scores = F.normalize(query @ weight, dim=1)  # (B, N, 1)
    return (scores.transpose(1, 2) @ query)[:, None]
