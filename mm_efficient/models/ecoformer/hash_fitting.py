"""Fitting the hash functions of kernelised hashing attention to tokens.

Greedy supervised kernel hashing as in EcoFormer (https://arxiv.org/abs/2209.09004,
section 3.3): anchors are drawn from the tokens, then bits are fitted one by one so that
inner products of codes match a target similarity of the tokens.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernel_hashing import EPS, anchor_kernel

NUM_SIMILAR = 10  # most and least similar tokens of each token in the target
STEPS = 100  # gradient-descent steps per bit
LEARNING_RATE = 5e-4
MOMENTUM = 0.9


def fit_hash_functions(queries: Sequence[Tensor], projection: Tensor,
                       num_anchors: int, max_tokens: int,
                       generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Fit anchors, kernel means and projections to queries.

    Kernels and means use all tokens. The target similarity is quadratic in the number
    of tokens, so it uses a sample of at most ``max_tokens`` per image; up to that
    number it is the published one.

    Args:
        queries (Sequence[Tensor]): Batches of (B, N, H, d); sizes may differ between
            batches.
        projection (Tensor): Random start, (H, b, m).
        num_anchors (int): Number of anchors per head, m.
        max_tokens (int): Tokens per image in the target.
        generator (torch.Generator): CPU generator that draws anchors and samples.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Anchors (H, m, d), means (H, 1, m) and
        projections (H, b, m).

    Raises:
        ValueError: If there are fewer tokens than anchors, or tokens are not finite.
    """
    if not all(query.isfinite().all() for query in queries):
        raise ValueError(
            'fitting hash functions needs finite numbers, but images or weights give '
            'NaN or infinity: check the images, and that the weights have not diverged')
    anchors = draw_anchors(queries, num_anchors, generator)
    kernels = [anchor_kernel(query, anchors) for query in queries]  # (H, B, N, m)
    mean = torch.cat([k.mean(2) for k in kernels], 1).mean(1, keepdim=True)
    size = min(max_tokens, *(query.shape[1] for query in queries))
    centred, targets = [], []
    for query, kernel in zip(queries, kernels):
        index: slice | Tensor = slice(None)
        if query.shape[1] > size:
            index = torch.randperm(query.shape[1], generator=generator,
                                   device='cpu')[:size]
        centred.append(kernel[:, :, index] - mean[:, None])
        tokens = query[:, index].permute(2, 0, 1, 3)  # (H, B, size, d)
        targets.append(similarity_target(F.normalize(tokens, dim=-1, eps=EPS)))
    projection = fit_projection(torch.cat(centred, 1), torch.cat(targets, 1),
                                projection)
    return anchors, mean, projection


def draw_anchors(queries: Sequence[Tensor], num_anchors: int,
                 generator: torch.Generator) -> Tensor:
    """Draw random tokens, the same for every head, as unit vectors.

    They are drawn from the first image, plus as many further images as are needed for
    ``num_anchors`` tokens.

    Args:
        queries (Sequence[Tensor]): Batches of (B, N, H, d).
        num_anchors (int): Number of anchors m.
        generator (torch.Generator): CPU generator that draws the tokens.

    Returns:
        Tensor: (H, m, d).

    Raises:
        ValueError: If there are fewer tokens than anchors.
    """
    candidates, count = [], 0
    for image in (image for query in queries for image in query):  # (N, H, d)
        candidates.append(image)
        count += len(image)
        if count >= num_anchors:
            break
    else:
        raise ValueError(
            f'fitting hash functions needs at least {num_anchors} tokens in every '
            f'stage, got {count}: fit with more or larger images (stage 3 has one '
            'token per 16 x 16 pixels)')
    tokens = torch.cat(candidates)
    index = torch.randperm(count, generator=generator, device='cpu')[:num_anchors]
    return F.normalize(tokens[index], dim=-1, eps=EPS).transpose(0, 1)


def similarity_target(tokens: Tensor, num_similar: int = NUM_SIMILAR) -> Tensor:
    """Mark the most (+1) and least (-1) similar tokens of each token, others 0.

    Args:
        tokens (Tensor): Unit vectors, (..., N, d).
        num_similar (int): Number of either kind, at most N / 2; a token is among its
            own most similar ones. Defaults to 10.

    Returns:
        Tensor: (..., N, N), not symmetric.
    """
    similarity = tokens @ tokens.transpose(-1, -2)
    count = min(num_similar, tokens.shape[-2] // 2)
    target = torch.zeros_like(similarity)
    target.scatter_(-1, similarity.topk(count).indices, 1)
    return target.scatter_(-1, similarity.topk(count, largest=False).indices, -1)


def fit_projection(centred: Tensor, targets: Tensor, projection: Tensor) -> Tensor:
    """Fit the projections bit by bit.

    Each bit starts from its random projection and follows gradient descent on the
    relaxed code; the result is kept if it improves the hard code. The next bit fits the
    residual of the target.

    Args:
        centred (Tensor): Centred kernel values, (H, B, N, m).
        targets (Tensor): Target similarity, (H, B, N, N).
        projection (Tensor): Random start, (H, b, m).

    Returns:
        Tensor: (H, b, m).
    """
    bits = projection.shape[1]
    # y^T S y depends on the symmetric part of S only; here S + S^T
    residual = bits * (targets + targets.transpose(-1, -2))
    fitted = projection.clone()
    for bit in range(bits):
        start = projection[:, None, bit, :, None]  # (H, 1, m, 1)
        row = _descend(centred, residual, start, bits)
        code, old_code = _hard_code(centred, row), _hard_code(centred, start)
        if _agreement(code, residual) > _agreement(old_code, residual):
            fitted[:, bit] = row[:, 0, :, 0]
        else:
            code = old_code
        residual -= 2 * code * code.transpose(-1, -2)
    return fitted


def _descend(centred: Tensor, residual: Tensor, row: Tensor, bits: int) -> Tensor:
    """Gradient descent with Nesterov momentum on -y^T S y / (b N), y relaxed."""
    heads, images, tokens, _ = centred.shape
    scale = 2 * bits * tokens * heads * images
    transposed = centred.transpose(-1, -2).contiguous()
    velocity = torch.zeros_like(row)
    for _ in range(STEPS):
        code = torch.tanh(centred @ row / 2)  # 2 / (1 + exp(-x)) - 1
        slope = (residual @ code) * (1 - code.square())
        gradient = -(transposed @ slope).sum(1, keepdim=True) / scale
        velocity = MOMENTUM * velocity + gradient
        row = row - LEARNING_RATE * (gradient + MOMENTUM * velocity)
    return row


def _hard_code(centred: Tensor, row: Tensor) -> Tensor:
    """(H, B, N, 1), entries -1 and +1."""
    return torch.where(centred @ row > 0, 1., -1.).to(centred.dtype)


def _agreement(code: Tensor, residual: Tensor) -> Tensor:
    return (code * (residual @ code)).sum()
