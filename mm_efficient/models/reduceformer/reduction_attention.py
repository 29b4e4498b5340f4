"""Attention by sums instead of products of tokens (ReduceFormer)."""
import torch.nn.functional as F
from torch import Tensor

from ..layers import in_float32

EPS = 1e-15


@in_float32
def reduction_attention(query: Tensor, key: Tensor, value: Tensor,
                        pretrain_tokens: int | None = None) -> Tensor:
    """Gate a global number per channel by the query's share at each position.

    With Q and K after ReLU, the published form sums K, V times that sum, and K times
    the result over positions, and divides by sums of Q and K. All but one sum of K
    cancel:

        out[c, p] = Q[c, p] / sum_c' Q[c', p] * sum_p' K[c, p'] * sum_p' V[c, p']

    which is computed here. The result grows with the square of the number of positions
    and with the square of the input.

    Source: ReduceFormer, https://arxiv.org/abs/2406.07488.

    Args:
        query (Tensor): (B, C, H, W).
        key (Tensor): (B, C, H, W).
        value (Tensor): (B, C, H, W).
        pretrain_tokens (int, optional): Number of positions during pre-training. If
            given, both sums are scaled to that number.
            Defaults to None, the published function.

    Returns:
        Tensor: (B, C, H, W), zero where Q is zero in every channel.
    """
    query = F.relu(query)
    key_sum = F.relu(key).sum((2, 3), keepdim=True)  # (B, C, 1, 1)
    value_sum = value.sum((2, 3), keepdim=True)
    if pretrain_tokens is not None:
        factor = pretrain_tokens / (query.shape[2] * query.shape[3])
        key_sum, value_sum = factor * key_sum, factor * value_sum
    gate = query / (query.sum(1, keepdim=True) + EPS)
    return gate * (key_sum * value_sum)


def reduction_attention_reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Published order of sums and products, as a reference for tests.

    Args:
        query (Tensor): (B, C, H, W).
        key (Tensor): (B, C, H, W).
        value (Tensor): (B, C, H, W).

    Returns:
        Tensor: (B, C, H, W).
    """
    query, key = F.relu(query), F.relu(key)
    key_sum = key.sum((2, 3), keepdim=True)
    value_sum = (value * key_sum).sum((2, 3), keepdim=True)
    product_sum = (key * value_sum).sum((2, 3), keepdim=True)
    query_sum = query.sum(1, keepdim=True)
    return query * product_sum / (query_sum * key_sum + EPS)
