"""Fits EcoFormer's hash functions before training."""
import time
from collections.abc import Sequence

import torch
from mmengine.dist import broadcast, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.utils import ProgressBar
from torch import Tensor, nn

from ..models.ecoformer.backbone import EcoFormer
from .progress import unwrapped_model
from .seeding import SampleIndex

# Keeps the random numbers of these images independent of those in training.
_FITTING_STREAM = 0x68617368


@HOOKS.register_module()
class HashFittingHook(Hook):
    """Fit the hash functions of an EcoFormer backbone before training.

    Does nothing if they are fitted already: after loading a fitted model or resuming.
    Otherwise rank 0 samples images from the training set, with training augmentation,
    fits the hash functions layer by layer and broadcasts them. They stay constant from
    then on and are part of every checkpoint. An EMA of the weights starts with them and
    keeps them, since the average of equal buffers is that buffer.

    Images are processed one at a time: hashing would treat the padding of a batch as
    image content.

    Args:
        num_images (int): Images to fit to, at least one. Defaults to 16.
        max_tokens (int): Tokens per image in the part of the fitting whose cost is
            quadratic in them. Defaults to 512.

    Raises:
        ValueError: If an argument is not positive.
    """

    priority = 'VERY_HIGH'  # before hooks that copy or use the model

    def __init__(self, num_images: int = 16, max_tokens: int = 512) -> None:
        if num_images < 1 or max_tokens < 1:
            raise ValueError('num_images and max_tokens must be at least 1, got '
                             f'{num_images} and {max_tokens}')
        self.num_images = num_images
        self.max_tokens = max_tokens

    def before_train(self, runner: Runner) -> None:
        """Fit the backbones that are not fitted yet."""
        model = unwrapped_model(runner)
        backbones = [module for module in model.modules()
                     if isinstance(module, EcoFormer) and not module.is_fitted]
        if not backbones:
            return
        if is_main_process():
            images = self._sample_images(runner, model)
            for backbone in backbones:
                self._fit(runner, backbone, images)
        for backbone in backbones:
            for buffer in backbone.buffers():
                broadcast(buffer)

    def _sample_images(self, runner: Runner, model: nn.Module) -> list[Tensor]:
        """Preprocessed images of the training set, each (1, C, H, W)."""
        loader = runner.train_dataloader
        generator = torch.Generator().manual_seed(runner.seed)
        order = torch.randperm(len(loader.dataset), generator=generator,
                               device='cpu')
        images = []
        for position, index in enumerate(order[:self.num_images].tolist()):
            entropy = (_FITTING_STREAM, runner.seed, position)
            sample = loader.dataset[SampleIndex(index, entropy)]
            batch = model.data_preprocessor(loader.collate_fn([sample]), True)
            images.append(batch['inputs'])
        return images

    def _fit(self, runner: Runner, backbone: EcoFormer,
             images: Sequence[Tensor]) -> None:
        count = backbone.num_hash_attentions
        runner.logger.info(
            f'{type(backbone).__name__}: fitting the hash functions of {count} '
            f'attention layers to {len(images)} training images, at most '
            f'{self.max_tokens} tokens each')
        start, progress = time.perf_counter(), ProgressBar(count)
        backbone.fit(images, self.max_tokens, runner.seed, progress.update)
        progress.file.write('\n')
        runner.logger.info('Hash functions fitted in '
                           f'{time.perf_counter() - start:.1f} s; they stay constant '
                           'and are saved in the checkpoints')
