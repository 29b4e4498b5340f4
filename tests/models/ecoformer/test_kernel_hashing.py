"""Hash codes, their attention and the fitting of hash functions."""
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mm_efficient.models.ecoformer import hash_fitting
from mm_efficient.models.ecoformer.hash_fitting import (
    draw_anchors,
    fit_hash_functions,
    fit_projection,
    similarity_target,
)
from mm_efficient.models.ecoformer.kernel_hashing import (
    anchor_kernel,
    hash_attention,
    hash_codes,
)

REFERENCE = Path(__file__).parents[2] / 'reference'
SYNTH = runpy.run_path(str(REFERENCE / 'synth.py'))


def random_case(batch=2, tokens=30, heads=3, dims=8, anchors=5, bits=4, seed=0):
    torch.manual_seed(seed)
    return dict(
        query=torch.randn(batch, tokens, heads, dims, dtype=torch.double),
        anchors=torch.randn(heads, anchors, dims, dtype=torch.double),
        mean=0.6 + 0.02 * torch.randn(heads, 1, anchors, dtype=torch.double),
        projection=torch.randn(heads, bits, anchors, dtype=torch.double))


def direct_codes(query, anchors, mean, projection):
    """Distances as differences, one image and head at a time."""
    codes = []
    for head in range(query.shape[2]):
        for image in query[:, :, head]:
            tokens = F.normalize(image, dim=-1)
            distance = (tokens[:, None] - anchors[head]).square().sum(-1)
            kernel = torch.exp(-distance / (2 * distance.mean()))
            codes.append(torch.sign((kernel - mean[head]) @ projection[head].T))
    return torch.stack(codes).unflatten(0, (query.shape[2], query.shape[0]))


def test_codes_are_the_signs_of_the_formula():
    case = random_case()
    codes = hash_codes(**case)
    assert torch.equal(codes, direct_codes(**case))
    assert 0.1 < (codes > 0).double().mean() < 0.9


def test_codes_do_not_depend_on_the_length_of_queries():
    case = random_case()
    codes = hash_codes(**case)
    case['query'] = 100 * case['query']
    assert torch.equal(hash_codes(**case), codes)


def test_zero_query_is_harmless():
    case = random_case()
    case['query'][0, 3] = 0
    case['query'].requires_grad_()
    codes = hash_codes(**case)
    (codes * torch.randn_like(codes)).sum().backward()
    assert codes.isfinite().all() and case['query'].grad.isfinite().all()


def test_gradient_passes_straight_through_small_projections():
    case = random_case()
    case['projection'] *= 5
    weight = torch.randn(3, 2, 30, 4, dtype=torch.double)

    def projected(query):
        centred = anchor_kernel(query, case['anchors']) - case['mean'][:, None]
        return centred @ case['projection'].transpose(1, 2)[:, None]

    grads = []
    for loss in (lambda q: (hash_codes(q, *list(case.values())[1:]) * weight).sum(),
                 lambda q: (projected(q).clamp(-1, 1) * weight).sum()):
        query = case['query'].clone().requires_grad_()
        loss(query).backward()
        grads.append(query.grad)
    assert (projected(case['query']).abs() > 1).any()
    torch.testing.assert_close(grads[0], grads[1])
    assert torch.autograd.gradcheck(
        lambda q: anchor_kernel(q, case['anchors']),
        case['query'][:, :4].clone().requires_grad_())


def test_attention_is_the_quadratic_formula():
    codes = hash_codes(**random_case())  # (H, B, N, b)
    value = torch.randn(2, 30, 3, 8, dtype=torch.double)
    scores = codes @ codes.transpose(-1, -2)
    per_head = value.permute(2, 0, 1, 3)
    bias = codes.shape[-1] + 1
    expected = (scores @ per_head + bias * per_head) / (
        scores + bias).sum(-1, keepdim=True)
    torch.testing.assert_close(hash_attention(codes, value).permute(2, 0, 1, 3),
                               expected)


def test_attention_of_many_tokens_stays_in_range():
    codes = torch.ones(1, 1, 70000, 16)
    out = hash_attention(codes, torch.ones(1, 70000, 1, 4))
    assert out.isfinite().all()


# --------------------------------------------------------------------- fitting


@pytest.fixture(scope='module')
def published_case():
    path = REFERENCE / 'ecoformer' / 'pvtv2_b0_ecoformer.json'
    case = json.loads(path.read_text())['hash_fit_case']
    tokens = torch.from_numpy(SYNTH['synth_array']('ksh_tokens', [2, 2, 60, 32]))
    projection = torch.from_numpy(SYNTH['synth_array']('ksh_A', [2, 16, 25]))
    return case, F.normalize(tokens.double(), dim=-1), 5 * projection.double()


def check(out, expected):
    assert list(out.shape) == expected['shape']
    sample = out.reshape(-1)[expected['sample_index']].numpy()
    np.testing.assert_allclose(sample, expected['sample'], rtol=0,
                               atol=1e-9 * expected['abs_max'])


def test_fitting_matches_the_published_code(published_case):
    case, tokens, start = published_case  # tokens (B, H, N, d)
    query, anchors = tokens.transpose(1, 2), tokens[0, :, :25]
    kernel = anchor_kernel(query, anchors)
    mean = kernel.mean((1, 2))[:, None]
    check(mean[None], case['mvec'])
    target = similarity_target(tokens.transpose(0, 1))
    assert target.sum() == case['S0_sum']
    projection = fit_projection(kernel - mean[:, None], target, start)
    check(projection, case['A'])
    check(projection - start, case['A_minus_A0'])
    replaced = (projection != start).any(-1).any(0).sum()
    assert replaced == case['columns_replaced']
    codes = hash_codes(query, anchors, mean, projection)
    check(codes.transpose(0, 1), case['bits'])
    assert codes.sum() == case['bits_sum']


def test_target_marks_the_most_and_least_similar():
    angle = torch.linspace(0, torch.pi, 8)
    tokens = torch.stack([angle.cos(), angle.sin()], -1)
    target = similarity_target(tokens, num_similar=2)
    assert target[0].tolist() == [1, 1, 0, 0, 0, 0, -1, -1]
    assert target[7].tolist() == [-1, -1, 0, 0, 0, 0, 1, 1]
    # No token is both where there are few
    few = similarity_target(tokens[:3])
    assert few.sum(-1).tolist() == [0, 0, 0]


def test_batches_of_different_sizes_and_bounded_sample(monkeypatch):
    sizes = []

    def record(centred, targets, projection):
        sizes.append((tuple(centred.shape), tuple(targets.shape)))
        return fit_projection(centred, targets, projection)

    monkeypatch.setattr(hash_fitting, 'fit_projection', record)
    monkeypatch.setattr(hash_fitting, 'STEPS', 2)
    torch.manual_seed(0)
    queries = [torch.randn(2, 90, 3, 8), torch.randn(1, 70, 3, 8)]
    start = torch.randn(3, 4, 25)
    for limit, tokens in ((50, 50), (80, 70)):
        fitted = [fit_hash_functions(queries, start, 25, limit,
                                     torch.Generator().manual_seed(1))
                  for _ in range(2)]
        assert sizes[-1] == ((3, 3, tokens, 25), (3, 3, tokens, tokens))
        assert all(map(torch.equal, *fitted))  # the seed decides
    anchors, mean, projection = fitted[0]
    assert anchors.shape == (3, 25, 8) and projection.shape == start.shape
    # Means are those of all tokens, every image counting the same
    kernels = [anchor_kernel(q, anchors).mean(2) for q in queries]
    torch.testing.assert_close(mean, torch.cat(kernels, 1).mean(1, keepdim=True))


def test_anchors_are_tokens_of_the_first_images():
    torch.manual_seed(0)
    query = torch.randn(4, 12, 2, 8)
    unit = F.normalize(query, dim=-1)
    generator = torch.Generator().manual_seed(0)
    for num_anchors, images in ((10, 1), (25, 3)):
        anchors = draw_anchors([query], num_anchors, generator)
        candidates = unit[:images].flatten(0, 1).transpose(0, 1)  # (H, n, d)
        distance = torch.cdist(anchors, candidates)
        chosen = distance.argmin(-1)
        assert distance.amin(-1).max() < 1e-3
        assert torch.equal(chosen[0], chosen[1])  # same tokens for every head
        assert len(chosen[0].unique()) == num_anchors
    with pytest.raises(ValueError, match='at least 50 tokens .* got 48'):
        draw_anchors([query], 50, generator)
