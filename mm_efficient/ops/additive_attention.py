"""Efficient additive attention of SwiftFormer on maps.

Every token's query votes for one global query, which then gates the keys; no
token meets another, so the cost is linear in the tokens. The number of tokens
N is H * W, and no map is turned into a token sequence or back. See
https://arxiv.org/abs/2303.15446.
"""
import torch.nn.functional as F
from torch import Tensor


def global_query(query: Tensor, weight: Tensor) -> Tensor:
    """Sum of all queries, weighted by their L2-normalised scores.

    The scores' norm over all tokens is 1, hence any positive factor of
    ``weight`` cancels and the result grows like the square root of N. Below
    float32 the bound of the norm, 1e-12, would be 0.

    Args:
        query (Tensor): Queries, (B, C, H, W), contiguous or channels last.
        weight (Tensor): Direction that scores a query, (C, 1).

    Returns:
        Tensor: (B, C, 1, 1).
    """
    query = query.flatten(2)  # (B, C, N), a view in both layouts
    scores = F.normalize(weight.t() @ query, dim=-1)  # (B, 1, N)
    return (query @ scores.transpose(1, 2))[..., None]
