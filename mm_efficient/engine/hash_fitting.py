"""Fitting the hash functions of EcoFormer before a training."""
import time

import torch
from mmengine.dist import broadcast, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.utils import ProgressBar

from ..models.ecoformer.backbone import EcoFormer
from .seeding import SampleIndex

# Keeps the randomness of the fitting's images apart from that of the training's.
_FITTING_STREAM = 0x68617368


@HOOKS.register_module()
class HashFittingHook(Hook):
    """Fit the hash functions of an EcoFormer backbone before its training.

    Nothing happens if they are fitted already: the weights are those of a fitted
    model, or the training is resumed. Otherwise one process draws images from the
    training set, with the augmentations of the training, fits the hash functions
    to them layer after layer and hands them to the others. From then on they are
    constant, and part of every checkpoint. An exponential moving average of the
    weights starts with them, and an average of equal buffers is that buffer.

    Images are taken one at a time, so that padding to a common size, which hashing
    would take for a part of the image, has no influence.

    Args:
        num_images (int): Images to fit to, at least one. Defaults to 16.
        max_tokens (int): Tokens per image in the part of the fitting that is
            quadratic in them. Defaults to 512.

    Raises:
        ValueError: If an argument is not positive.
    """

    priority = 'VERY_HIGH'  # before hooks that copy or use the model

    def __init__(self, num_images=16, max_tokens=512):
        if num_images < 1 or max_tokens < 1:
            raise ValueError('num_images and max_tokens must be at least 1, got '
                             f'{num_images} and {max_tokens}')
        self.num_images = num_images
        self.max_tokens = max_tokens

    def before_train(self, runner):
        """Fit what is not fitted."""
        model = runner.model.module if is_model_wrapper(runner.model) \
            else runner.model
        backbones = [module for module in model.modules()
                     if isinstance(module, EcoFormer) and not module.is_fitted]
        if not backbones:
            return
        if is_main_process():
            images = self._draw_images(runner, model)
            for backbone in backbones:
                self._fit(runner, backbone, images)
        for backbone in backbones:
            for buffer in backbone.buffers():
                broadcast(buffer)

    def _draw_images(self, runner, model):
        """Preprocessed images of the training set, each (1, C, H, W)."""
        loader = runner.train_dataloader
        generator = torch.Generator().manual_seed(runner.seed)
        order = torch.randperm(len(loader.dataset), generator=generator)
        images = []
        for position, index in enumerate(order[:self.num_images].tolist()):
            entropy = (_FITTING_STREAM, runner.seed, position)
            sample = loader.dataset[SampleIndex(index, entropy)]
            batch = model.data_preprocessor(loader.collate_fn([sample]), True)
            images.append(batch['inputs'])
        return images

    def _fit(self, runner, backbone, images):
        count = backbone.num_hash_attentions
        runner.logger.info(
            f'{type(backbone).__name__}: fitting the hash functions of {count} '
            f'attentions to {len(images)} training images, at most '
            f'{self.max_tokens} tokens of each')
        start, progress = time.perf_counter(), ProgressBar(count)
        backbone.fit(images, self.max_tokens, runner.seed, progress.update)
        progress.file.write('\n')
        runner.logger.info('Hash functions fitted in '
                           f'{time.perf_counter() - start:.1f} s; they are constant '
                           'from now on and part of the checkpoints')
