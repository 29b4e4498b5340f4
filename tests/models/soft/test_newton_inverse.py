"""The inverses against eigendecomposition and plain autograd."""
import pytest
import torch

from mm_efficient.models.soft import newton_inverse as ops
from mm_efficient.models.soft.gaussian_attention import landmark_kernel


def kernels(scale, count=24):
    generator = torch.Generator().manual_seed(1)
    landmarks = scale * torch.randn(2, 3, count, 8, generator=generator,
                                    dtype=torch.float64)
    return landmarks.requires_grad_(), landmark_kernel(landmarks)


def spectral(matrix, alpha, steps=20):
    """The filter the iteration applies to eigenvalues, in closed form."""
    values, vectors = torch.linalg.eigh(matrix)
    alpha = alpha.expand(*matrix.shape[:-2], 1, 1)[..., 0]
    kept = (1 - alpha * values.square())**(2**steps)
    return (vectors * ((1 - kept) / values)[..., None, :]) @ vectors.mT


@pytest.mark.parametrize('scale', [1., 0.5])
def test_regularized_inverse_is_the_spectral_filter(scale):
    _, kernel = kernels(scale)
    regularized = kernel + 0.01 * torch.eye(kernel.shape[-1], dtype=kernel.dtype)
    alpha = 1.8 / kernel.sum(-1).amax(-1).square()[..., None, None]
    torch.testing.assert_close(ops.regularized_inverse(kernel),
                               spectral(regularized, alpha), rtol=1e-7, atol=1e-8)


def test_regularized_inverse_has_the_gradient_of_an_inverse():
    """Equal to that of torch.inverse where the iteration has converged."""
    landmarks, kernel = kernels(2.)
    eye = torch.eye(kernel.shape[-1], dtype=kernel.dtype)
    weight = torch.linspace(-1, 1, kernel.numel(), dtype=kernel.dtype).view_as(kernel)
    expected, = torch.autograd.grad(
        ((kernel + 0.01 * eye).inverse() * weight).sum(), landmarks, retain_graph=True)
    grad, = torch.autograd.grad(
        (ops.regularized_inverse(kernel) * weight).sum(), landmarks)
    torch.testing.assert_close(grad, expected)


def published_start_factor(kernel):
    """Section 4 of the journal paper, one image at a time, as a loop."""
    alphas = []
    for image in kernel:
        alpha = 2 / image.sum(-1).max().square()
        eye = torch.eye(image.shape[-1], dtype=image.dtype)
        for _ in range(10):
            if (eye - alpha * image @ image).abs().sum(-2).max() <= 1.01:
                break
            alpha = alpha / 2
        alphas.append(alpha)
    return torch.stack(alphas)[:, None, None, None]


@pytest.mark.parametrize('scale', [0.1, 0.5, 1., 3.])
def test_normalized_inverse_in_value_and_gradient(scale):
    """Against autograd through the plain loop, the start factor included."""
    landmarks, kernel = kernels(scale)
    weight = torch.linspace(-1, 1, kernel.numel(), dtype=kernel.dtype).view_as(kernel)
    alpha = published_start_factor(kernel)
    plain = ops.newton_iteration_reference(kernel, alpha, 20)
    root = kernel.sum(-1).rsqrt()
    expected = root[..., None] * plain * root[..., None, :]
    inverse = ops.normalized_inverse(kernel)
    torch.testing.assert_close(inverse, expected)
    grads = [torch.autograd.grad((x * weight).sum(), landmarks, retain_graph=True)[0]
             for x in (inverse, expected)]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-8 * grads[1].abs().max())


def test_images_and_only_images_have_their_own_start_factor():
    kernel = torch.cat([kernels(scale)[1][:1] for scale in (0.2, 2.)])
    together = ops.normalized_inverse(kernel)
    alone = torch.cat([ops.normalized_inverse(k[None]) for k in kernel])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    by_head = torch.stack([ops.normalized_inverse(kernel[:1, i:i + 1])[0, 0]
                           for i in range(3)])
    assert not torch.allclose(by_head, together[0])


@pytest.mark.parametrize('family', [ops.regularized_inverse, ops.normalized_inverse])
def test_backward_keeps_no_iterates(family):
    """What autograd saves does not grow with the number of steps."""
    def saved_entries(steps):
        _, kernel = kernels(0.5)
        kernel = kernel.detach().requires_grad_()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
                lambda x: sizes.append(x.numel()) or x, lambda x: x):
            family(kernel, steps)
        return sum(sizes)
    assert saved_entries(20) == saved_entries(1) > 0


@pytest.mark.parametrize('family', [ops.regularized_inverse, ops.normalized_inverse])
def test_float32_is_accurate_for_overlapping_landmarks(family):
    """Overlap as strong as 1050 smooth landmarks have (SOFT, detection size)."""
    _, kernel = kernels(0.15, 60)
    reference = family(kernel)
    assert (family(kernel.float()) - reference).norm() / reference.norm() < 1e-4


def test_one_landmark_is_deterministic():
    """A A = 1 sits on the edge of convergence; the result is exactly zero."""
    kernel = landmark_kernel(torch.rand(1, 2, 1, 32))
    assert (ops.normalized_inverse(kernel) == 0).all()


@pytest.mark.parametrize('family', [ops.regularized_inverse, ops.normalized_inverse])
@pytest.mark.parametrize('norm', [0, 300, 3000, 1e6])
def test_nearly_equal_landmarks_of_any_norm(family, norm):
    """tests/trials has more. The counts and the layout make products asymmetric."""
    generator = torch.Generator().manual_seed(0)
    for count in (3, 11, 50):
        noise = torch.randn(32, count, generator=generator)
        landmarks = (norm * noise[:, :1] / noise[:, :1].norm() + 1e-3 * noise).T
        landmarks = landmarks[None, None].requires_grad_()
        inverse = family(landmark_kernel(landmarks))
        inverse.square().sum().backward()
        assert inverse.isfinite().all() and inverse.abs().max() < 200
        assert landmarks.grad.isfinite().all()
