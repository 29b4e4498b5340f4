"""Launches, bytes and peak memory of backbones on fake CUDA tensors, without a GPU.

Counts operators (about the kernels launched) and the bytes they read and write, which
says nothing about time. With --train, forward and backward, and what the activations
hold at most; needs a C++ compiler.
"""
import argparse
import logging
import tempfile
import warnings

import timm
import torch
from harness import Spy, build_hooks, enable, tensors
from torch._subclasses.fake_tensor import FakeTensorMode

import mm_efficient  # noqa: F401
from mm_efficient import kernels

VARIANTS = ('soft_tiny', 'soft_tiny_norm', 'swiftformer_xs', 'lowformer_b0',
            'reduceformer_b1', 'ecoformer_pvt_b0', 'ecoformer_twins_s')
DTYPES = dict(fp32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16,
              half=torch.float16)


def measure(variant, size=(64, 224, 224), dtype='fp16', train=False,
            channels_last=False, with_cp=False):
    """Run a backbone, or with ``timm/`` a classifier, once; returns the spy."""
    autocast = dtype in ('fp16', 'bf16')
    torch.set_default_dtype(torch.float32 if autocast else DTYPES[dtype])  # of weights
    with FakeTensorMode():
        with torch.device('cuda'):
            if variant.startswith('timm/'):
                model = timm.create_model(variant[5:])
            else:
                model = timm.create_model(f'mm_{variant}', features_only=True).backbone
                model._known_fitted = True  # of EcoFormer
                for stage in model.stages:
                    stage.with_cp = with_cp
        model.train(train)
        x = torch.empty(size[0], 3, *size[1:], device='cuda')
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        spy = Spy()
        with torch.set_grad_enabled(train), spy:
            with torch.autocast('cuda', DTYPES[dtype], enabled=autocast):
                outs = tensors(model(x))
            if train:
                sum(out.float().mean() for out in outs).backward()
    return spy


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('variants', nargs='*', default=VARIANTS,
                        help='variants, or timm/NAME (default: the smallest ones)')
    parser.add_argument('--size', nargs=3, type=int, default=(64, 224, 224),
                        metavar=('B', 'H', 'W'), help='images (default: 64 224 224)')
    parser.add_argument('--dtype', default='fp16', choices=DTYPES,
                        help='type of autocast, or half for weights and images in '
                             'float16 (default: fp16)')
    parser.add_argument('--train', action='store_true', help='forward and backward')
    parser.add_argument('--channels-last', action='store_true', help='of images')
    parser.add_argument('--with-cp', action='store_true', help='checkpoint all blocks')
    parser.add_argument('--kernels', action='store_true', help='fused, in Triton')
    parser.add_argument('--operators', type=int, default=0, metavar='N',
                        help='also list the N most frequent operators')
    return parser.parse_args()


def main():
    args = parse_args()
    kernels.switch(args.kernels)
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        if args.train and (errors := build_hooks(folder)):
            raise SystemExit(f'error: hooks.cpp does not compile:\n{errors}')
        enable(folder if args.train else None)
    print(f'| {args.dtype}, {"x".join(map(str, args.size))} | launches | GB | peak GB |'
          '\n|---|---|---|---|')
    for variant in args.variants:
        spy = measure(variant, args.size, args.dtype, args.train, args.channels_last,
                      args.with_cp)
        print(f'| {variant} | {sum(spy.launches.values())} | '
              f'{sum(spy.bytes.values()) / 1e9:.2f} | {spy.peak / 1e9:.3f} |')
        for name, count in spy.launches.most_common(args.operators):
            print(f'    {count:5} {name.partition("::")[2]:32} '
                  f'{spy.bytes[name] / 1e9:8.3f} GB')


if __name__ == '__main__':
    main()
