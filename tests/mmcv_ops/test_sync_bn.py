"""MMSyncBN of two processes, here threads, against batch norm of both batches."""
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from mmcv.ops.sync_bn import SyncBatchNormFunction, dist
from torch.nn.functional import batch_norm


def exchange(processes):
    """Stand-in of ``torch.distributed.all_reduce``."""
    barrier, parts = threading.Barrier(processes), {}

    def all_reduce(tensor, group):
        parts[threading.get_ident()] = tensor.clone()
        barrier.wait()
        total = sum(parts.values())
        barrier.wait()
        tensor.copy_(total)
    return all_reduce


def test_statistics_of_all_processes(monkeypatch):
    torch.manual_seed(0)
    both, grad = torch.randn(4, 3, 5, 6), torch.randn(4, 3, 5, 6)
    affine, statistics = torch.rand(2, 3), torch.rand(2, 3)
    monkeypatch.setattr(dist, 'all_reduce', exchange(2))

    def process(part):
        x = both[part].clone().requires_grad_()
        weight, bias = affine.clone().requires_grad_()
        mean, var = statistics.clone()
        output = SyncBatchNormFunction.apply(
            x, mean, var, weight, bias, 0.2, 1e-5, None, 2, 'default')
        grads = torch.autograd.grad(output, [x, weight, bias], grad[part])
        return output, mean, var, *grads

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(process, [slice(0, 2), slice(2, 4)]))
    x, (weight, bias) = both.clone().requires_grad_(), affine.clone().requires_grad_()
    mean, var = statistics.clone()
    output = batch_norm(x, mean, var, weight, bias, True, 0.2, 1e-5)
    grads = torch.autograd.grad(output, [x, weight, bias], grad)
    for index, expected in ((0, output), (3, grads[0])):
        torch.testing.assert_close(
            torch.cat([result[index] for result in results]), expected,
            rtol=1e-5, atol=1e-5)
    # As DDP, mmcv averages the gradients of parameters over the processes.
    for result in results:
        for found, expected in zip(
                result[1:3] + result[4:], (mean, var, grads[1] / 2, grads[2] / 2)):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_is_normalised_in_float32():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5).half()
    affine, outputs = torch.ones(3), []
    for cast in (x.clone(), x.float()):
        mean, var = torch.zeros(3), torch.ones(3)
        output = SyncBatchNormFunction.apply(
            cast.requires_grad_(), mean, var, affine, affine, 0.2, 1e-5, None, 1,
            'default')
        output.sum().backward()
        outputs.append((output, cast.grad, mean, var))
    for half, single in zip(*outputs):
        assert torch.equal(half, single.to(half.dtype))
