"""Hooks that depend on training progress, besides the learning rate."""
import re
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn


def training_progress(runner: Runner, warmup: float = 0.) -> float:
    """Fraction of the training after the warmup that is complete.

    Args:
        runner (Runner): The runner, in training.
        warmup (float): Fraction of the training that does not count.
            Defaults to 0.

    Returns:
        float: 0 until the end of the warmup, almost 1 in the last iteration.
    """
    done = runner.iter / runner.max_iters
    return max(0., (done - warmup) / (1 - warmup))


def unwrapped_model(runner: Runner) -> nn.Module:
    """The runner's model without wrappers such as DistributedDataParallel."""
    model = runner.model
    return model.module if is_model_wrapper(model) else model


def averaged_model(runner: Runner) -> nn.Module | None:
    """The averaged model of the ``EMAHook``, or None without such a hook."""
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            return hook.ema_model.module
    return None


@HOOKS.register_module()
class DropPathProgressHook(Hook):
    """Increase stochastic depth linearly with training progress.

    Multiplies the rates of all modules called ``DropPath`` (MMCV's and timm's) by the
    progress. It can also set the final rates as EfficientViT's trainer does
    (https://arxiv.org/abs/2205.14756), by residual branch instead of by block: the n
    branches of the stages end with ``rate / n``, ``2 * rate / n``, ..., ``rate``.

    Args:
        rate (float, optional): Final rate of the last branch. Defaults to None, the
            rates the model was built with.
        skip (int): Leading branches that are never dropped and not counted. Needs
            ``rate``. Defaults to 0.
        order (Sequence[str]): Names of the branches of a block in the order of
            counting, such as ``('local', 'attn', 'mlp')``. Needs ``rate``.
            Defaults to (), the order of the modules.
        warmup (float): Fraction of the training during which nothing is dropped.
            Defaults to 0.
    """

    def __init__(self, rate: float | None = None, skip: int = 0,
                 order: Sequence[str] = (), warmup: float = 0.) -> None:
        self.rate = rate
        self.skip = skip
        self.order = list(order)
        self.warmup = warmup

    def before_train(self, runner: Runner) -> None:
        """Collect the DropPath modules and their final rates."""
        self.modules = self._branches(unwrapped_model(runner))
        self.rates = [module.drop_prob for module in self.modules]
        if self.rate is not None:
            count = len(self.modules) - self.skip
            self.rates = [max(0, i - self.skip + 1) * self.rate / count
                          for i in range(len(self.modules))]

    def _branches(self, model: nn.Module) -> list[Any]:
        """The DropPath modules in the order of counting."""
        blocks: dict[str, list[tuple[int, nn.Module]]] = {}  # by the first branch
        for name, module in model.named_modules():
            if type(module).__name__ != 'DropPath' or (
                    self.rate is not None and '.stages.' not in f'.{name}'):
                continue
            block, *rest = re.split(rf'\.({"|".join(self.order)})\.', name)
            rank = self.order.index(rest[0]) if rest else 0
            blocks.setdefault(block, []).append((rank, module))
        return [module for branches in blocks.values()
                for _, module in sorted(branches, key=lambda branch: branch[0])]

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Any = None) -> None:
        """Set the rates for the coming iteration."""
        progress = training_progress(runner, self.warmup)
        for module, rate in zip(self.modules, self.rates):
            module.drop_prob = progress * rate


@HOOKS.register_module()
class MESAHook(Hook):
    """Memory-efficient sharpness-aware training, https://arxiv.org/abs/2205.14083.

    After ``begin``, passes the averaged model of the ``EMAHook`` to a
    :class:`~mm_efficient.models.MESAClassifier`, which learns from it.

    Args:
        weight (float): Weight of the loss against the predictions of the average.
            Defaults to 2.
        begin (float): Fraction of the training after the warmup at which it starts.
            Defaults to 0.25.
        warmup (float): Fraction of the training that is warmup. Defaults to 0.
    """

    def __init__(self, weight: float = 2., begin: float = 0.25,
                 warmup: float = 0.) -> None:
        self.weight = weight
        self.begin = begin
        self.warmup = warmup

    def before_train(self, runner: Runner) -> None:
        """Find the model and its average.

        Raises:
            ValueError: If the model is not a ``MESAClassifier`` or has no average.
        """
        self.model: Any = unwrapped_model(runner)
        self.averaged = averaged_model(runner)
        if self.averaged is None or not hasattr(self.model, 'mesa'):
            raise ValueError(
                f'{type(self).__name__} needs a MESAClassifier and an EMAHook in '
                f'custom_hooks, got {type(self.model).__name__} and '
                f'{"no" if self.averaged is None else "an"} EMAHook')
        self.averaged.eval()

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Any = None) -> None:
        """Enable the loss from ``begin`` on."""
        active = training_progress(runner, self.warmup) >= self.begin
        self.model.mesa = (self.averaged, self.weight) if active else None
