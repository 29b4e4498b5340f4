"""Hooks that make backbones faster, and leave the rest of the model as it is."""
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ..errors import InputError
from .inductor import compile_for_any_size
from .progress import DropPathProgressHook, unwrapped_model


def find_backbones(model: nn.Module) -> list[nn.Module]:
    """Find the backbones of a model.

    Args:
        model (nn.Module): Any model.

    Returns:
        list[nn.Module]: Its ``backbone``; without one, those of its children, such as
        the two of a semi-supervised detector.
    """
    backbone = getattr(model, 'backbone', None)
    if isinstance(backbone, nn.Module):
        return [backbone]
    return [found for child in model.children() for found in find_backbones(child)]


class _BackboneHook(Hook):
    """Changes every backbone of a model once, before training, validation or test."""

    priority = 'LOWEST'  # after hooks that copy the model
    changed = False

    def before_run(self, runner: Runner) -> None:
        """Change the backbones.

        Raises:
            InputError: If the model has none.
        """
        if self.changed:
            return
        for backbone in self.backbones_of(unwrapped_model(runner)):
            self.change(runner, backbone)
        self.changed = True

    @classmethod
    def backbones_of(cls, model: nn.Module) -> list[nn.Module]:
        """Find the backbones of a model.

        Args:
            model (nn.Module): Any model.

        Returns:
            list[nn.Module]: At least one.

        Raises:
            InputError: If it has none.
        """
        backbones = find_backbones(model)
        if not backbones:
            raise InputError(f'{cls.__name__} expects a model with a backbone, got '
                             f'{type(model).__name__}: remove it from custom_hooks, or '
                             'leave out the option that adds it.')
        return backbones

    def change(self, runner: Runner, backbone: nn.Module) -> None:
        raise NotImplementedError


@HOOKS.register_module()
class CompileBackboneHook(_BackboneHook):
    """Compile the backbone with ``torch.compile``.

    Necks, heads and losses stay eager: what they do depends on the number of objects,
    which no compiler likes. MMEngine's key ``compile`` compiles the whole training step
    instead. The image size is a variable of the compiled code, so a training at many
    sizes compiles once, or a second time where a size is special, such as square images
    or a single one in the batch; evaluation compiles a graph of its own. Names in state
    dicts do not change, and copies of the model (averages, precise batch norm) run
    eagerly. It works with ``with_cp``, mixed precision and several processes. In any
    config, with this package installed::

        custom_imports = dict(imports='mm_efficient', allow_failed_imports=False)
        custom_hooks = [dict(type='CompileBackboneHook')]

    Args:
        backend (str): See ``torch.compile``. Defaults to 'inductor', which needs Triton
            on a GPU, and a C++ compiler on a CPU.
        mode (str, optional): See ``torch.compile``. Defaults to None, its default mode.
        dynamic (bool): Whether the number of images and their size are variables. If
            not, every size is compiled for itself. Defaults to True.
    """

    def __init__(self, backend: str = 'inductor', mode: str | None = None,
                 dynamic: bool = True) -> None:
        self.settings: Any = dict(backend=backend, mode=mode)
        self.dynamic = dynamic

    def before_train(self, runner: Runner) -> None:
        """Check that nothing changes the graph in every iteration.

        Raises:
            InputError: If a hook raises the rates of stochastic depth.
        """
        self.check_hooks(type(hook).__name__ for hook in runner.hooks)

    @staticmethod
    def check_hooks(names: Iterable[str]) -> None:
        """Check that no hook raises the rates of stochastic depth.

        Args:
            names (Iterable[str]): Names of all hooks.

        Raises:
            InputError: If one does.
        """
        if DropPathProgressHook.__name__ in names:
            raise InputError(
                'A compiled backbone has fixed rates of stochastic depth, and '
                'DropPathProgressHook, which raises them in every iteration, would '
                'compile it anew each time: remove one of the two hooks (--compile is '
                'the other).')

    def change(self, runner: Runner, backbone: nn.Module) -> None:
        """Compile a backbone, at its first call."""
        # Else PyTorch cuts graphs in parts, to send gradients of some while it computes
        # others; it refuses graphs with gradient checkpointing
        torch._dynamo.config.optimize_ddp = False
        if not self.dynamic:
            backbone.compile(**self.settings, dynamic=False)
        else:
            # dynamic=True would make variables of all numbers, such as the eps of a
            # norm, which doubles the time to compile
            backbone.register_forward_pre_hook(_mark_sizes, with_kwargs=True)
            compile_for_any_size()
            backbone.compile(**self.settings)
        runner.logger.info(
            f'{type(backbone).__name__} is compiled by {self.settings["backend"]}: the '
            'first iteration, and the first of an evaluation, take up to a few minutes')


@torch.compiler.disable
def _mark_sizes(backbone: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
    for x in _images([args, kwargs]):
        for dim in (0, 2, 3):
            torch._dynamo.maybe_mark_dynamic(x, dim)


def _images(inputs: Any) -> Iterator[Tensor]:
    """Batches of images, some backbones take several, in lists or by name."""
    if isinstance(inputs, Tensor) and inputs.dim() == 4:
        yield inputs
    elif isinstance(inputs, (list, tuple, Mapping)):
        for each in inputs.values() if isinstance(inputs, Mapping) else inputs:
            yield from _images(each)


@HOOKS.register_module()
class ChannelsLastBackboneHook(_BackboneHook):
    """Run the backbone in the memory format channels last.

    Images and weights of the backbone are converted, and its feature maps converted
    back, so that any neck and head work with them. The results are the same up to
    rounding. Whether it is faster depends on the backbone, the number type and the
    device; ``tools/analysis_tools/benchmark.py`` measures it.
    """

    def change(self, runner: Runner, backbone: nn.Module) -> None:
        """Convert the weights of a backbone, and from now on its input and output."""
        for module in backbone.modules():
            # Others read their weights themselves, such as ConvWS2d, which views them,
            # and deformable convolutions, which refuse the format
            if type(module).forward in (nn.Conv2d.forward, nn.ConvTranspose2d.forward):
                module.to(  # type: ignore[call-overload]
                    memory_format=torch.channels_last)
        backbone.register_forward_pre_hook(_to_channels_last, with_kwargs=True)
        backbone.register_forward_hook(_to_contiguous)


@torch.compiler.disable
def _to_channels_last(backbone: nn.Module, args: tuple, kwargs: dict[str, Any]
                      ) -> tuple[tuple, dict[str, Any]]:
    return (_convert(args, torch.channels_last),
            _convert(kwargs, torch.channels_last))


@torch.compiler.disable
def _to_contiguous(backbone: nn.Module, args: tuple, outputs: Any) -> Any:
    return _convert(outputs, torch.contiguous_format)


def _convert(maps: Any, memory_format: torch.memory_format) -> Any:
    """Convert images or feature maps, also in lists, tuples and dicts."""
    if isinstance(maps, Tensor):
        if maps.dim() != 4:  # tokens
            return maps.contiguous()
        return maps.contiguous(memory_format=memory_format)
    if type(maps) in (list, tuple):
        return type(maps)(_convert(each, memory_format) for each in maps)
    if type(maps) is dict:
        return {key: _convert(each, memory_format) for key, each in maps.items()}
    return maps
