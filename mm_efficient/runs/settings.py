"""Write the arguments of a run into its config."""
import os.path as osp
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import PretrainedInit

from ..errors import InputError
from ..files import is_local
from ..weights.checking import check_checkpoint
from ..weights.locating import locate
from ..weights.reading import SCHEME
from .devices import check_compiler
from .model_checks import is_ours
from .traversal import as_list, inner_model, split_datasets, type_name


def set_work_dir(cfg: Config, work_dir: str | Path | None = None) -> None:
    """Choose the folder of a run.

    Args:
        cfg (Config): Changed in place.
        work_dir (str | Path, optional): The folder. Defaults to None: the
            ``work_dir`` of the config, else ``work_dirs/<name of the config file>``.

    Raises:
        InputError: If the config has neither a ``work_dir`` nor a file name.
    """
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    elif cfg.get('work_dir') is None:
        if not cfg.filename:
            raise InputError('work_dir is missing: the config was not read from a '
                             'file, whose name would be the default.')
        cfg.work_dir = osp.join('./work_dirs', Path(cfg.filename).stem)


def set_pretrained(cfg: Config, pretrained: str | Path) -> None:
    """Choose the weights that the backbone starts from.

    Args:
        cfg (Config): Changed in place.
        pretrained (str | Path): File or URL of the authors' weights or of a model of
            ours that contains the backbone, a name that
            :func:`~mm_efficient.weights.locating.locate` knows, or any other checkpoint
            that ``init_cfg`` accepts; 'none' to start from scratch.

    Raises:
        InputError: If the model has no backbone, there are no such weights, or the
            checkpoint is for a backbone of another package and cannot be read.
    """
    backbone, source = inner_model(cfg.model).get('backbone'), str(pretrained)
    if not isinstance(backbone, dict):
        raise InputError('--pretrained needs model.backbone, which the config does '
                         'not set. Use --cfg-options for the weights of other parts.')
    start_from_scratch(cfg)
    if source == 'none':
        return
    init_cfg = dict(type='Pretrained', checkpoint=source)
    if is_ours(backbone.get('type')):
        locate(source.removeprefix(SCHEME))
        if is_local(source) or source.startswith('http'):
            init_cfg['checkpoint'] = SCHEME + source
    elif is_local(source):
        # Our backbones find their part of a file; MMEngine would load nothing
        content = check_checkpoint(source) or {}
        if any(key.startswith('backbone.')
               for key in content.get('state_dict', content)):
            init_cfg['prefix'] = 'backbone.'
    backbone['init_cfg'] = init_cfg


def start_from_scratch(cfg: Config) -> None:
    """Let the backbone start from random weights, as its other ``init_cfg`` says.

    Args:
        cfg (Config): Changed in place.
    """
    model = inner_model(cfg.model)
    backbone = model.get('backbone') or {}
    for node in (model, backbone):  # legacy way to name weights
        if node.get('pretrained'):
            node['pretrained'] = None
    init_cfg = backbone.pop('init_cfg', None) or []
    others = [each for each in (init_cfg if isinstance(init_cfg, list) else [init_cfg])
              if each.get('type') not in ('Pretrained', PretrainedInit)]
    if others:
        backbone['init_cfg'] = others


def use_amp(cfg: Config) -> None:
    """Turn mixed precision on.

    Args:
        cfg (Config): Changed in place.

    Raises:
        InputError: Without a GPU, or if the config's optimizer wrapper has no
            counterpart with mixed precision.
    """
    if get_device() in ('cpu', 'mps'):
        raise InputError('--amp needs a GPU, found none: leave it out. (MMEngine has '
                         'no mixed precision on the CPU.)')
    kind = type_name(cfg.optim_wrapper) or 'OptimWrapper'
    mixed = {'OptimWrapper': 'AmpOptimWrapper', 'AGCOptimWrapper': 'AmpAGCOptimWrapper'}
    if kind not in {*mixed, *mixed.values()}:
        raise InputError(f'--amp works with optim_wrapper.type {" or ".join(mixed)}, '
                         f'the config sets {kind}.')
    cfg.optim_wrapper.type = mixed.get(kind, kind)
    cfg.optim_wrapper.loss_scale = cfg.optim_wrapper.get(
        'loss_scale', 'dynamic')


def use_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate with the total batch size.

    Args:
        cfg (Config): Changed in place.

    Raises:
        InputError: If the config does not set the batch size of its learning rate.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise InputError('--auto-scale-lr needs auto_scale_lr.base_batch_size, '
                         'which the config does not set.')
    cfg.auto_scale_lr.enable = True


def check_auto_scale_lr(cfg: Config) -> None:
    """Check what a learning rate is scaled by.

    Args:
        cfg (Config): Config of a training run.

    Raises:
        InputError: If the learning rate is to be scaled, and not by a positive number.
    """
    settings = cfg.get('auto_scale_lr') or {}
    base = settings.get('base_batch_size')
    if settings.get('enable') and not (isinstance(base, (int, float)) and base > 0):
        raise InputError(f'auto_scale_lr.base_batch_size is {base!r}; expected the '
                         'total batch size that the learning rate is for.')


def speed_up_backbone(cfg: Config, compiled: bool, channels_last: bool) -> None:
    """Let the backbone be compiled, or run in the memory format channels last.

    Args:
        cfg (Config): Changed in place.
        compiled (bool): Whether to compile it.
        channels_last (bool): Whether to change its memory format.

    Raises:
        InputError: If the config compiles the whole model, or there is no compiler.
    """
    given = {*map(type_name, as_list(cfg.get('custom_hooks')))}
    if channels_last and 'ChannelsLastBackboneHook' not in given:
        add_hook(cfg, dict(type='ChannelsLastBackboneHook'))
    if compiled:
        if cfg.get('compile'):
            raise InputError('--compile compiles the backbone, but the config sets '
                             'compile, with which MMEngine compiles the whole model. '
                             'Leave --compile out, or add --cfg-options compile=False.')
        if 'CompileBackboneHook' not in given:  # the config's one may have settings
            check_compiler()
            add_hook(cfg, dict(type='CompileBackboneHook'))


def set_resume(cfg: Config, checkpoint: str | Path,
               allow_changes: bool = False) -> None:
    """Resume a training run, without the weights that it once started from.

    Args:
        cfg (Config): Changed in place.
        checkpoint (str | Path): The checkpoint to resume from.
        allow_changes (bool): Whether the learning rate and the schedules of the config
            replace those of the checkpoint. Defaults to False.
    """
    cfg.resume = True
    cfg.load_from = str(checkpoint)
    start_from_scratch(cfg)
    if allow_changes:
        add_hook(cfg, dict(type='NewScheduleHook'))


def make_resumable(cfg: Config) -> None:
    """Derive all randomness of a training run from its seed and the iteration.

    The loss curve of a resumed run is then that of an uninterrupted one, see
    :mod:`mm_efficient.engine.seeding`.

    Args:
        cfg (Config): Changed in place.
    """
    loader = cfg.train_dataloader
    if type_name(loader.sampler) == 'SeededSampler':
        return
    loader.sampler = dict(type='SeededSampler', sampler=loader.sampler)
    for dataset in split_datasets(cfg, 'train'):
        if 'pipeline' in dataset:
            steps = as_list(dataset['pipeline'])
            dataset['pipeline'] = [dict(type='SeedSample'), *steps]
    add_hook(cfg, dict(type='SeedIterationHook'))


def add_hook(cfg: Config, hook: dict) -> None:
    """Append a hook to ``custom_hooks``.

    Args:
        cfg (Config): Changed in place.
        hook (dict): Config of the hook.
    """
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
