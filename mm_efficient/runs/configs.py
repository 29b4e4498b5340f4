"""From command-line choices to a runner, for the three tasks."""
import os
import os.path as osp
from importlib.util import find_spec

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import barrier
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from ..datasets.mini import generate_dataset
from ..engine.metrics import DumpSegResults
from ..errors import InputError
from ..files import config_files
from ..weights.checking import check_checkpoint
from .classes import set_num_classes, use_class_folders
from .data_checks import check_data, leaf_datasets
from .distributed import init_distributed
from .mini import MINI_DATA, apply_mini
from .model_checks import check_model, check_teacher, check_weights

EXTRAS = dict(mmpretrain=None, mmdet='det', mmseg='seg')


def load_config(path, options=None, mini=False):
    """Read a config and apply the choices that concern data.

    Args:
        path (str): The config file, or the name alone of one of this package's
            (``soft_small_maskrcnn_1x.py``) unless there is a file of that name.
        options (dict, optional): Overrides by dotted key. ``data_root`` moves
            every data set and evaluator of the config, ``num_classes`` is for
            every head of the model. Defaults to None.
        mini (bool): Whether to run on the miniature data, which takes
            precedence over the config but not over ``options``. Defaults to
            False.

    Returns:
        Config: The config to run.

    Raises:
        InputError: If the file is missing, cannot be read, or names no task.
    """
    path = _find_config(path)
    try:
        cfg = Config.fromfile(path)
    except ModuleNotFoundError as error:
        raise InputError(f'Config {path} needs a package that is not '
                         f'installed: {error}.') from None
    except (SyntaxError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f'Config {path} cannot be read: '
                         f'{type(error).__name__}: {error}') from None
    _check_scope(cfg, path)
    if mini:
        apply_mini(cfg)
    options = dict(options or {})
    if 'data_root' in options:
        move_data(cfg, options.pop('data_root'))
    if 'num_classes' in options:
        set_num_classes(cfg, options.pop('num_classes'))
    if mini and not any(key.startswith('model.teacher') for key in options):
        drop_teacher(cfg)
    cfg.merge_from_dict(options)
    _allow_no_workers(cfg)
    return cfg


def _find_config(path):
    """The path of a config; in a wheel ours lie too deep to be typed."""
    if osp.isfile(path):
        return path
    for file in config_files():
        if file.name == path:
            return str(file)
    raise InputError(f'Config {path} does not exist (current folder: {os.getcwd()}). '
                     'Give its path, or of a config of mm_efficient the name alone, '
                     'as soft_tiny_300e.py.')


def drop_teacher(cfg):
    """Leave the distillation of a config out, if there is any."""
    if cfg.model.get('teacher'):
        cfg.model.teacher = None


def _allow_no_workers(cfg):
    """``num_workers=0`` goes without the settings that are for workers."""
    for part in ('train', 'val', 'test'):
        loader = cfg.get(f'{part}_dataloader') or {}
        if loader.get('num_workers') == 0:
            loader.persistent_workers = False
            loader.pop('prefetch_factor', None)


def _check_scope(cfg, path):
    scope = cfg.get('default_scope')
    if scope not in EXTRAS:
        raise InputError(
            f'{path} sets default_scope={scope!r}; expected one of '
            f'{list(EXTRAS)} (classification, detection, segmentation). '
            'A config without one is usually a base of others.')
    if find_spec(scope) is None:
        raise InputError(f'{path} needs {scope}, which is not installed: pip '
                         f"install 'mm-efficient[{EXTRAS[scope]}]'")
    for key in ('model', 'train_dataloader', 'test_dataloader'):
        if key not in cfg:
            raise InputError(f'{path} sets no {key}. Name a complete config, '
                             'such as those in configs/{cls,det,seg}/.')


def move_data(cfg, root):
    """Make a config read from another folder of the same layout.

    Args:
        cfg (Config): Changed in place.
        root (str): The new ``data_root``.
    """
    cfg.data_root = root
    for part in ('train', 'val', 'test'):
        loader = cfg.get(f'{part}_dataloader')
        if not loader:
            continue
        evaluators = cfg.get(f'{part}_evaluator') or []
        for dataset in leaf_datasets(loader.dataset):
            old = dataset.get('data_root') or ''
            dataset.data_root = root
            for metric in evaluators if isinstance(evaluators, list) \
                    else [evaluators]:
                ann_file = metric.get('ann_file')
                if ann_file and old and ann_file.startswith(old):
                    metric.ann_file = osp.join(
                        root, ann_file[len(old):].lstrip('/'))


def set_work_dir(cfg, config_path, work_dir=None):
    """Choose the folder of a run: argument, config, or the config's name."""
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(config_path))[0]
        cfg.work_dir = osp.join('./work_dirs', name)


def use_amp(cfg):
    """Switch mixed precision on.

    Raises:
        InputError: Without a GPU, or if the config trains in a way that cannot.
    """
    if get_device() in ('cpu', 'mps'):
        raise InputError('--amp needs a GPU, found none: leave it out. (On CPU '
                         'MMEngine offers no mixed precision.)')
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    mixed = {'OptimWrapper': 'AmpOptimWrapper', 'AGCOptimWrapper': 'AmpAGCOptimWrapper'}
    if kind not in {*mixed, *mixed.values()}:
        raise InputError(f'--amp works with optim_wrapper.type {" or ".join(mixed)}, '
                         f'the config sets {kind}.')
    cfg.optim_wrapper.type = mixed.get(kind, kind)
    cfg.optim_wrapper.loss_scale = cfg.optim_wrapper.get(
        'loss_scale', 'dynamic')


def use_auto_scale_lr(cfg):
    """Scale the learning rate with the total batch size.

    Raises:
        InputError: If the config does not say for which batch size it is.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise InputError('--auto-scale-lr needs auto_scale_lr.base_batch_size, '
                         'which the config does not set.')
    cfg.auto_scale_lr.enable = True


def set_resume(cfg, resume):
    """Continue a training, with the seed it was begun with.

    Args:
        cfg (Config): Changed in place; its ``work_dir`` is set.
        resume (str): A checkpoint, or ``'auto'`` for the latest one in the
            work dir (none there: training starts from the beginning).

    Raises:
        InputError: If the checkpoint cannot be continued from, or belongs to
            another model.
    """
    cfg.resume = True
    cfg.load_from = None if resume == 'auto' else resume
    path = cfg.load_from
    if path is None and osp.isdir(cfg.work_dir):
        path = find_latest_checkpoint(cfg.work_dir)
    if path is None:
        return
    checkpoint = check_checkpoint(path, resume=True)
    if checkpoint is None:
        return
    check_weights(cfg, checkpoint, path)
    seed = checkpoint['meta'].get('seed')
    if seed is not None:
        # MMEngine restores it too, but after building the data loader.
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}


def make_resumable(cfg):
    """Let the randomness of a training follow from seed and position only.

    A resumed training then has the loss curve of an uninterrupted one, see
    :mod:`mm_efficient.engine.seeding`.
    """
    loader = cfg.train_dataloader
    if loader.sampler.type != 'SeededSampler':
        loader.sampler = dict(type='SeededSampler', sampler=loader.sampler)
        for dataset in leaf_datasets(loader.dataset):
            dataset.pipeline.insert(0, dict(type='SeedSample'))
        cfg.custom_hooks = list(cfg.get('custom_hooks') or []) + [
            dict(type='SeedIterationHook')
        ]


def start(cfg, launcher, mini=False):
    """Join the other processes and have the miniature data drawn.

    Args:
        cfg (Config): Config of the run, changed in place.
        launcher (str): ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        mini (bool): Whether the run is on miniature data. Defaults to False.
    """
    cfg.launcher = launcher
    init_distributed(cfg)
    if not mini:
        return
    # one process of each machine draws, the others wait
    if os.environ.get('LOCAL_RANK', '0') == '0':
        try:
            generate_dataset(MINI_DATA[cfg.default_scope])
        except OSError as error:
            raise InputError(str(error)) from None
    barrier()


def build_runner(cfg):
    """Build the runner of a config.

    Args:
        cfg (Config): Config of the run.

    Returns:
        Runner: Ready to train or test.
    """
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def prepare_training(args):
    """Check everything a training needs and set its config up.

    Args:
        args (argparse.Namespace): Arguments of ``tools/train.py``.

    Returns:
        Config: For :func:`build_runner`.

    Raises:
        InputError: If something is missing or wrong.
    """
    cfg = load_config(args.config, args.cfg_options, args.mini)
    set_work_dir(cfg, args.config, args.work_dir)
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        use_auto_scale_lr(cfg)
    check_model(cfg)
    check_teacher(cfg)
    if args.resume is not None:
        set_resume(cfg, args.resume)
    elif cfg.get('load_from'):
        _check_start(cfg)
    start(cfg, args.launcher, args.mini)
    for part in ('train', 'val'):
        check_data(cfg, part)
    use_class_folders(cfg, ('train', 'val'))
    make_resumable(cfg)
    return cfg


def _check_start(cfg):
    checkpoint = check_checkpoint(cfg.load_from)
    if checkpoint is not None:
        check_weights(cfg, checkpoint, cfg.load_from, complete=False)


def prepare_testing(args):
    """Check everything a test needs and set its config up.

    Args:
        args (argparse.Namespace): Arguments of ``tools/test.py``.

    Returns:
        Config: For :func:`build_runner`.

    Raises:
        InputError: If something is missing or wrong.
    """
    cfg = load_config(args.config, args.cfg_options, args.mini)
    set_work_dir(cfg, args.config, args.work_dir)
    drop_teacher(cfg)
    check_model(cfg, pretrained=False)
    checkpoint = check_checkpoint(args.checkpoint)
    cfg.load_from = args.checkpoint
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise InputError(f'--out is a pickle file (.pkl), got {args.out}')
    if args.show or args.show_dir:
        show_predictions(cfg, args.show, args.show_dir, args.wait_time)
    start(cfg, args.launcher, args.mini)
    check_data(cfg, 'test')
    if any(hook.get('test') for hook in cfg.get('custom_hooks') or []
           if hook['type'] == 'PreciseBNEvalHook'):
        check_data(cfg, 'train')
    use_class_folders(cfg, ('test', ))
    if checkpoint is not None:
        check_weights(cfg, checkpoint, args.checkpoint)
    return cfg


def show_predictions(cfg, show, folder, wait_time):
    """Draw every prediction of a test.

    Args:
        cfg (Config): Changed in place.
        show (bool): Whether to open a window for each.
        folder (str | None): Where to write pictures.
        wait_time (float): How long a window stays, in seconds.

    Raises:
        InputError: If the config has no hook that opens windows.
    """
    if folder:
        cfg.custom_hooks = list(cfg.get('custom_hooks') or []) + [
            dict(type='SavePredictionImagesHook', out_dir=folder)
        ]
    if show:
        hook = (cfg.get('default_hooks') or {}).get('visualization')
        if hook is None:
            raise InputError('--show needs default_hooks.visualization, which '
                             'the config does not set. Use --show-dir.')
        switch = 'enable' if cfg.default_scope == 'mmpretrain' else 'draw'
        hook.update({switch: True}, show=True, wait_time=wait_time, interval=1)


def dump_predictions(runner, path):
    """Have the predictions of a test written to a pickle.

    Args:
        runner (Runner): Runner that is about to test.
        path (str): The file; masks of instances are run-length encoded, of
            segmentations there are the label maps.
    """
    scope = runner.cfg.default_scope
    if scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults as DumpResults
    elif scope == 'mmseg':
        DumpResults = DumpSegResults
    else:
        from mmengine.evaluator import DumpResults
    runner.test_evaluator.metrics.append(DumpResults(out_file_path=path))
