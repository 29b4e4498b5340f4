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
        query (Tensor): Queries, (B, H, W, C), in any order of the memory.
        weight (Tensor): Direction that scores a query, (C, 1).

    Returns:
        Tensor: (B, 1, 1, C).
    """
    query = query.flatten(1, 2)  # (B, N, C), a view also of a (B, C, H, W) map
    scores = F.normalize(query @ weight, dim=1)  # (B, N, 1)
    return (scores.transpose(1, 2) @ query)[:, None]
