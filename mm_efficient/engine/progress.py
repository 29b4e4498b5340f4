"""What changes in the course of a training besides the learning rate."""
import re

from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS


def training_progress(runner, warm_up=0.):
    """How much of a training is done.

    Args:
        runner (Runner): The runner, in training.
        warm_up (float): Share of the training that does not count.
            Defaults to 0.

    Returns:
        float: 0 until the end of the warm-up, nearly 1 at the end.
    """
    done = runner.iter / runner.max_iters
    return max(0., (done - warm_up) / (1 - warm_up))


def unwrapped_model(runner):
    """The model of a runner without wrappers such as DistributedDataParallel."""
    model = runner.model
    return model.module if is_model_wrapper(model) else model


def averaged_model(runner):
    """The averaged model that an ``EMAHook`` keeps, or None without such a hook."""
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            return hook.ema_model.module
    return None


@HOOKS.register_module()
class DropPathProgressHook(Hook):
    """Let stochastic depth grow with the progress of the training.

    Every rate is multiplied by the share of the training that is done. It concerns
    every module with a ``drop_prob`` called ``DropPath`` (MMCV's and timm's).

    Rates can be set here too, as EfficientViT's trainer does
    (https://arxiv.org/abs/2205.14756), counting residual branches instead of blocks:
    those of the n branches of the stages are ``rate / n``, ``2 * rate / n``, ...,
    ``rate``.

    Args:
        rate (float, optional): Rate of the last branch. Defaults to None, the rates
            that the model was built with.
        skip (int): Branches at the beginning that are never dropped, and not
            counted. Only with ``rate``. Defaults to 0.
        order (Sequence[str]): Names of the branches of a block in the order in which
            they count, such as ``('local', 'attn', 'mlp')``. Only with ``rate``.
            Defaults to (), the order of the modules.
        warm_up (float): Share of the training in which nothing is dropped.
            Defaults to 0.
    """

    def __init__(self, rate=None, skip=0, order=(), warm_up=0.):
        self.rate = rate
        self.skip = skip
        self.order = list(order)
        self.warm_up = warm_up

    def before_train(self, runner):
        """Find the modules and their rates at the end of the training."""
        model = unwrapped_model(runner)
        self.modules = self._branches(model)
        count = len(self.modules) - self.skip
        self.rates = [module.drop_prob for module in self.modules]
        if self.rate is not None:
            self.rates = [max(0, i - self.skip + 1) * self.rate / count
                          for i in range(len(self.modules))]

    def _branches(self, model):
        named = [(name, module) for name, module in model.named_modules()
                 if type(module).__name__ == 'DropPath'
                 and (self.rate is None or '.stages.' in f'.{name}')]
        blocks = {}  # in the order of their first branch
        for name, module in named:
            parts = re.split(rf'\.({"|".join(self.order)})\.', name)
            rank = self.order.index(parts[1]) if len(parts) > 1 else 0
            blocks.setdefault(parts[0] if len(parts) > 1 else name,
                              []).append((rank, module))
        return [module for branches in blocks.values()
                for _, module in sorted(branches, key=lambda branch: branch[0])]

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Set the rates of the coming iteration."""
        progress = training_progress(runner, self.warm_up)
        for module, rate in zip(self.modules, self.rates):
            module.drop_prob = progress * rate


@HOOKS.register_module()
class MESAHook(Hook):
    """Have a classifier learn from its own average: memory-efficient
    sharpness-aware training, https://arxiv.org/abs/2205.14083.

    It hands the averaged model of the ``EMAHook`` to a
    :class:`~mm_efficient.models.MESAClassifier` when it is time.

    Args:
        weight (float): Weight of the loss against the average's predictions.
            Defaults to 2.
        begin (float): Share of the training behind the warm-up after which it is
            added. Defaults to 0.25.
        warm_up (float): Share of the training that is warm-up. Defaults to 0.
    """

    def __init__(self, weight=2., begin=0.25, warm_up=0.):
        self.weight = weight
        self.begin = begin
        self.warm_up = warm_up

    def before_train(self, runner):
        """Check that there is an average to learn from, and who learns.

        Raises:
            ValueError: If there is not.
        """
        self.model = unwrapped_model(runner)
        self.averaged = averaged_model(runner)
        if self.averaged is None or not hasattr(self.model, 'mesa'):
            raise ValueError(
                f'{type(self).__name__} needs a MESAClassifier and an EMAHook in '
                f'custom_hooks, got {type(self.model).__name__} and '
                f'{"no" if self.averaged is None else "an"} EMAHook')
        self.averaged.eval()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Switch the loss on when it is time."""
        active = training_progress(runner, self.warm_up) >= self.begin
        self.model.mesa = (self.averaged, self.weight) if active else None
