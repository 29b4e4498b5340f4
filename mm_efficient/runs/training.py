"""Training."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from ..engine.backbone_speed import CompileBackboneHook
from ..engine.stopping import SignalWatch, StopHook
from ..errors import InputError
from ..weights.checking import check_checkpoint
from .arguments import check_arguments
from .configs import load_config, require
from .devices import allow_determinism, check_workers, warn_of_unused_gpu
from .distributed import (
    check_environment,
    first_process_reports,
    join_processes,
    once_per_machine,
)
from .failures import (
    check_first_sample,
    entries,
    find_cause,
    name_files,
    no_empty_work_dir,
)
from .model_checks import check_model, check_teacher, check_weights
from .overrides import check_length, check_save_best
from .own_data import FoundClasses, check_splits, use_classes
from .resuming import check_same_training, record_processes
from .runner import build_optimizer, build_runner, check_num_batches
from .settings import (
    check_auto_scale_lr,
    make_resumable,
    set_pretrained,
    set_resume,
    set_work_dir,
    speed_up_backbone,
    use_amp,
    use_auto_scale_lr,
)
from .traversal import type_name
from .work_dirs import check_folders, find_start, in_use, make_durable, take_resume

SPLITS = ('train', 'val')  # read during training


def train(config: str | Path | Config,
          *,
          work_dir: str | Path | None = None,
          data_root: str | Path | None = None,
          num_classes: int | None = None,
          classes: Sequence[str] | None = None,
          pretrained: str | Path | None = None,
          resume: bool | str | Path | None = None,
          allow_changes: bool = False,
          auto_resume: bool = False,
          amp: bool = False,
          auto_scale_lr: bool = False,
          compile_backbone: bool = False,
          channels_last: bool = False,
          cfg_options: Mapping[str, Any] | None = None,
          launcher: str = 'none',
          mini: bool = False) -> Runner:
    """Train a classifier, detector or segmentor, depending on the config.

    Args:
        config (str | Path | Config): Config file, the name alone of one of this
            package's configs ('soft_tiny_300e.py'), or a config, which is not changed.
        work_dir (str | Path, optional): Folder for logs and checkpoints. Defaults to
            None: the config's, else ``work_dirs/<name of the config file>``.
        data_root (str | Path, optional): Folder to read all data sets from, with the
            layout the config expects. Defaults to None, that of the config.
        num_classes (int, optional): Number of classes of every head. Defaults to
            None: of ``classes``, of the annotation file, else of the config.
        classes (Sequence[str], optional): Names of the classes of the data, see
            docs/own_data.md. Defaults to None: the categories of the annotation file,
            the names of the class folders, else those of the config.
        pretrained (str | Path, optional): Weights the backbone starts from: a file, a
            URL, a name, or 'none' to start from scratch; see
            :func:`~.settings.set_pretrained`. Defaults to None, as the config says.
        resume (bool | str | Path, optional): Checkpoint to continue from, or True for
            the latest one in the work dir. Defaults to None, a new run.
        allow_changes (bool): Whether to resume although batch size, optimizer, schedule
            or training data differ from those of the checkpoint, and to go on with
            those of the config. Defaults to False.
        auto_resume (bool): Whether to continue from the latest checkpoint in the work
            dir if there is one, and else as ``resume`` says. For jobs that are started
            again with the same command. Defaults to False.
        amp (bool): Whether to use mixed precision, on a GPU. Defaults to False.
        auto_scale_lr (bool): Whether to scale the learning rate with the total batch
            size. Defaults to False.
        compile_backbone (bool): Whether to compile the backbone, see
            :class:`~mm_efficient.engine.CompileBackboneHook`. Defaults to False.
        channels_last (bool): Whether to run the backbone in that memory format.
            Defaults to False.
        cfg_options (Mapping[str, Any], optional): Settings of the config to override,
            by dotted key. Defaults to None.
        launcher (str): What starts the processes: 'none' (a single process),
            'pytorch', 'slurm' or 'mpi'. Defaults to 'none'.
        mini (bool): Whether to train the same model on a small generated data set
            for a few minutes. Defaults to False.

    Returns:
        Runner: After the training, with ``model`` and ``work_dir``.

    Raises:
        InputError: If an argument, the config, the data or the weights are wrong, or
            another run uses the work dir; nothing has been written then. Data that are
            too large to check before are checked when they are read.
        StoppedError: If a signal has stopped the run, see
            :class:`~mm_efficient.engine.StopHook`.
    """
    cfg = prepare_training(
        config, work_dir=work_dir, data_root=data_root, num_classes=num_classes,
        classes=classes, pretrained=pretrained, resume=resume,
        allow_changes=allow_changes, auto_resume=auto_resume, amp=amp,
        auto_scale_lr=auto_scale_lr, compile_backbone=compile_backbone,
        channels_last=channels_last, cfg_options=cfg_options, launcher=launcher,
        mini=mini)
    with in_use(cfg.work_dir), SignalWatch() as watch:
        is_new = not entries(cfg.work_dir)
        with first_process_reports(launcher), \
                no_empty_work_dir(cfg.work_dir, is_new), find_cause(cfg, SPLITS):
            runner = build_runner(cfg)
            check_num_batches(runner)
            build_optimizer(runner)
            for split, loop in zip(SPLITS, (runner.train_loop, runner.val_loop)):
                if loop is not None:
                    name_files(loop.dataloader.dataset)
                    check_first_sample(loop.dataloader.dataset, runner.model, split)
        for hook in runner.hooks:
            if isinstance(hook, StopHook):
                hook.watch = watch
        with no_empty_work_dir(cfg.work_dir, is_new, lambda: runner.iter > 0), \
                find_cause(cfg, SPLITS):
            runner.train()
    return runner


def prepare_training(config: str | Path | Config,
                     *,
                     work_dir: str | Path | None = None,
                     data_root: str | Path | None = None,
                     num_classes: int | None = None,
                     classes: Sequence[str] | None = None,
                     pretrained: str | Path | None = None,
                     resume: bool | str | Path | None = None,
                     allow_changes: bool = False,
                     auto_resume: bool = False,
                     amp: bool = False,
                     auto_scale_lr: bool = False,
                     compile_backbone: bool = False,
                     channels_last: bool = False,
                     cfg_options: Mapping[str, Any] | None = None,
                     launcher: str = 'none',
                     mini: bool = False) -> Config:
    """Set up the config of a training run and check all its inputs.

    Joins the processes; one per machine checks, downloads and generates data.

    Args: As of :func:`train`.

    Returns:
        Config: For :func:`build_runner`.

    Raises:
        InputError: If something is missing or wrong.
    """
    with first_process_reports(launcher):
        cfg = load_config(config, cfg_options, mini, data_root=data_root,
                          num_classes=num_classes, classes=classes)
        require(cfg, 'train_dataloader', 'train_cfg', 'optim_wrapper')
        check_length(cfg)
        check_arguments(cfg, SPLITS)
        check_save_best(cfg)
        set_work_dir(cfg, work_dir)
        if pretrained is not None:
            set_pretrained(cfg, pretrained)
        if amp:
            use_amp(cfg)
        if auto_scale_lr:
            use_auto_scale_lr(cfg)
        check_auto_scale_lr(cfg)
        speed_up_backbone(cfg, compile_backbone, channels_last)
        if compile_backbone:
            CompileBackboneHook.check_hooks(map(type_name, cfg.custom_hooks))
        if allow_changes and not (resume or auto_resume):
            raise InputError('--allow-changes has no effect without --resume.')
        resume = take_resume(cfg, resume)
        check_environment(launcher)
    join_processes(cfg, launcher)
    read: dict[str, Any] = {}  # the checkpoint, in the process that has looked for it
    start = once_per_machine(
        lambda: find_start(cfg.work_dir, resume, auto_resume, read))
    if start:
        set_resume(cfg, start, allow_changes)
    make_resumable(cfg)
    make_durable(cfg)
    allow_determinism(cfg)
    record_processes(cfg)
    seed, found = once_per_machine(
        lambda: _check_training(cfg, mini, classes, num_classes, allow_changes, read))
    if seed is not None:
        # MMEngine restores it too, but after building the data loader
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}
    use_classes(cfg, SPLITS, found)
    return cfg


def _check_training(cfg: Config, mini: bool, classes: Sequence[str] | None,
                    num_classes: int | None, allow_changes: bool,
                    read: Mapping[str, Any]
                    ) -> tuple[int | None, FoundClasses]:
    """Check data and weights; return the seed to resume with and the classes."""
    warn_of_unused_gpu()
    check_folders(cfg, SPLITS)
    check_workers(cfg, SPLITS)
    check_model(cfg)
    check_teacher(cfg)
    found = check_splits(cfg, SPLITS, mini, classes, num_classes)
    return check_start(cfg, allow_changes, read), found


def check_start(cfg: Config, allow_changes: bool = False,
                read: Mapping[str, Any] = MappingProxyType({})) -> int | None:
    """Check the checkpoint that a run resumes or starts from, if it is local.

    Args:
        cfg (Config): Config of the run, with ``work_dir``.
        allow_changes (bool): Whether the run may differ from the one to resume.
            Defaults to False.
        read (Mapping): Checkpoints that have been read, by path. Defaults to none.

    Returns:
        int | None: The seed of the run to resume, if known.

    Raises:
        InputError: If the checkpoint cannot be used, or belongs to another model.
    """
    resume, path = bool(cfg.get('resume')), cfg.get('load_from')
    if path is None:
        return None
    path = str(path)
    checkpoint = read.get(path) or check_checkpoint(path, resume)
    if checkpoint is None:
        return None
    check_weights(cfg, checkpoint, path, complete=resume)
    if resume and not allow_changes:
        check_same_training(cfg, checkpoint, path)
    return checkpoint['meta'].get('seed') if resume else None
