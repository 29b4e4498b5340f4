"""Attention by sums instead of products of tokens (ReduceFormer)."""
import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import is_eager

EPS = 1e-15


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
        query (Tensor): (B, ..., H, W); all dimensions between are channels.
        key (Tensor): (B, ..., H, W).
        value (Tensor): (B, ..., H, W).
        pretrain_tokens (int, optional): Number of positions during pre-training. If
            given, both sums are scaled to that number.
            Defaults to None, the published function.

    Returns:
        Tensor: (B, ..., H, W), float32 or float64, zero where Q is zero in every
        channel.
    """
    query, key = F.relu(query), F.relu(key)
    dtype = torch.promote_types(query.dtype, torch.float32)  # of sums; inputs stay half
    key_sum, value_sum = (x.sum((-2, -1), keepdim=True, dtype=dtype)
                          for x in (key, value))  # (B, ..., 1, 1)
    tokens = query.shape[-2] * query.shape[-1]
    if pretrain_tokens and not (is_eager() and tokens == pretrain_tokens):
        factor = pretrain_tokens / tokens
        key_sum, value_sum = factor * key_sum, factor * value_sum
    channels = tuple(range(1, query.ndim - 2))
    # EPS as a literal: compilers take a global float for an input of the graph
    gate = query / (query.sum(channels, keepdim=True, dtype=dtype) + 1e-15)
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
