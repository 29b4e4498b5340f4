"""Evaluating a checkpoint."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from ..engine.metrics import DumpSegResults
from ..errors import InputError
from ..files import check_output
from ..weights.checking import check_checkpoint
from .arguments import check_arguments
from .configs import drop_teacher, load_config, require
from .data_checks import check_data
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
from .model_checks import check_model, check_weights
from .own_data import FoundClasses, check_splits, use_classes
from .runner import build_runner
from .settings import add_hook, set_work_dir, speed_up_backbone
from .traversal import type_name
from .tta import check_tta, use_tta
from .work_dirs import check_folders


def test(config: str | Path | Config,
         checkpoint: str | Path,
         *,
         work_dir: str | Path | None = None,
         data_root: str | Path | None = None,
         num_classes: int | None = None,
         classes: Sequence[str] | None = None,
         tta: bool = False,
         compile_backbone: bool = False,
         channels_last: bool = False,
         out: str | Path | None = None,
         show: bool = False,
         show_dir: str | Path | None = None,
         wait_time: float = 2.,
         cfg_options: Mapping[str, Any] | None = None,
         launcher: str = 'none',
         mini: bool = False) -> dict[str, float]:
    """Evaluate a checkpoint with the metrics of its config.

    Args:
        config (str | Path | Config): Config file, the name alone of one of this
            package's configs ('soft_tiny_300e.py'), or a config, which is not changed.
        checkpoint (str | Path): The weights, complete.
        work_dir (str | Path, optional): Folder for the log and the metrics. Defaults
            to None: the config's, else ``work_dirs/<name of the config file>``.
        data_root (str | Path, optional): Folder to read all data sets from, with the
            layout the config expects. Defaults to None, that of the config.
        num_classes (int, optional): As in the training. Defaults to None.
        classes (Sequence[str], optional): As in the training. Defaults to None.
        tta (bool): Whether to average the predictions for several sizes and the mirror
            images of every image, see ``tta_pipeline`` of the config. Not for masks of
            instances. Defaults to False.
        compile_backbone (bool): Whether to compile the backbone, see
            :class:`~mm_efficient.engine.CompileBackboneHook`. Defaults to False.
        channels_last (bool): Whether to run the backbone in that memory format.
            Defaults to False.
        out (str | Path, optional): Pickle to write the predictions to: of detectors
            with masks as run lengths, of segmentors label maps. Defaults to None.
        show (bool): Whether to show the predictions in a window. Defaults to False.
        show_dir (str | Path, optional): Folder to write images with the predictions
            to. Defaults to None.
        wait_time (float): Seconds each window of ``show`` stays open. Defaults to 2.
        cfg_options (Mapping[str, Any], optional): Settings of the config to override,
            by dotted key. Defaults to None.
        launcher (str): What starts the processes: 'none' (a single process),
            'pytorch', 'slurm' or 'mpi'. Defaults to 'none'.
        mini (bool): Whether to test on the generated data set, for a checkpoint that
            was trained on it. Defaults to False.

    Returns:
        dict[str, float]: The metrics, as the config's evaluators name them.

    Raises:
        InputError: If an argument, the config, the data or the weights are wrong;
            nothing has been written to the work dir then.
    """
    cfg = prepare_testing(
        config, checkpoint, work_dir=work_dir, data_root=data_root,
        num_classes=num_classes, classes=classes, tta=tta,
        compile_backbone=compile_backbone, channels_last=channels_last, out=out,
        show=show,
        show_dir=show_dir, wait_time=wait_time, cfg_options=cfg_options,
        launcher=launcher, mini=mini)
    is_new = not entries(cfg.work_dir)
    with first_process_reports(launcher), no_empty_work_dir(cfg.work_dir, is_new), \
            find_cause(cfg, ('test', )):
        runner = build_runner(cfg)
        name_files(runner.test_loop.dataloader.dataset)
        check_first_sample(runner.test_loop.dataloader.dataset, runner.model, 'test')
    if out is not None:
        dump_predictions(runner, str(out))
    with no_empty_work_dir(cfg.work_dir, is_new), find_cause(cfg, ('test', )):
        return runner.test()


def prepare_testing(config: str | Path | Config,
                    checkpoint: str | Path,
                    *,
                    work_dir: str | Path | None = None,
                    data_root: str | Path | None = None,
                    num_classes: int | None = None,
                    classes: Sequence[str] | None = None,
                    tta: bool = False,
                    compile_backbone: bool = False,
                    channels_last: bool = False,
                    out: str | Path | None = None,
                    show: bool = False,
                    show_dir: str | Path | None = None,
                    wait_time: float = 2.,
                    cfg_options: Mapping[str, Any] | None = None,
                    launcher: str = 'none',
                    mini: bool = False) -> Config:
    """Set up the config of a test run and check all its inputs.

    Joins the processes; one per machine checks and generates data.

    Args: As of :func:`test`. ``out`` is only checked, see :func:`dump_predictions`.

    Returns:
        Config: For :func:`build_runner`.

    Raises:
        InputError: If something is missing or wrong.
    """
    with first_process_reports(launcher):
        cfg = load_config(config, cfg_options, mini, data_root=data_root,
                          num_classes=num_classes, classes=classes)
        require(cfg, 'test_dataloader', 'test_cfg', 'test_evaluator')
        set_work_dir(cfg, work_dir)
        check_arguments(cfg, ['test'])
        drop_teacher(cfg)
        if tta:
            use_tta(cfg)
        speed_up_backbone(cfg, compile_backbone, channels_last)
        cfg.load_from = str(checkpoint)
        if show_dir is not None or show:
            require(cfg, 'visualizer')
        if show_dir is not None:
            add_hook(cfg, dict(type='SavePredictionImagesHook', out_dir=str(show_dir)))
        if show:
            show_predictions(cfg, wait_time)
        allow_determinism(cfg)
        check_environment(launcher)
    join_processes(cfg, launcher)
    found = once_per_machine(
        lambda: _check_testing(cfg, out, mini, classes, num_classes))
    use_classes(cfg, ('test', ), found)
    if cfg.filename:
        # MMEngine writes the config to the work dir: leave that of the training there
        path = Path(cfg.filename)
        object.__setattr__(cfg, '_filename', f'{path.stem}_test{path.suffix}')
    return cfg


def _check_testing(cfg: Config, out: str | Path | None, mini: bool,
                   classes: Sequence[str] | None,
                   num_classes: int | None) -> FoundClasses:
    """Check data and weights; return the classes."""
    warn_of_unused_gpu()
    check_folders(cfg, ['test'])
    check_workers(cfg, ['test'])
    if out is not None:
        check_output(out, ('.pkl', '.pickle'))
    if any(hook.get('test') for hook in cfg.get('custom_hooks') or []
           if type_name(hook) == 'PreciseBNEvalHook'):
        check_data(cfg, 'train')
    weights = check_checkpoint(cfg.load_from)
    trained = ((weights or {}).get('meta') or {}).get('dataset_meta')
    found = check_splits(cfg, ('test', ), mini, classes, num_classes, trained)
    check_model(cfg, pretrained=False)
    check_tta(cfg)
    if weights is not None:
        check_weights(cfg, weights, cfg.load_from)
    return found


def show_predictions(cfg: Config, wait_time: float) -> None:
    """Show every prediction of a test in a window.

    Args:
        cfg (Config): Changed in place.
        wait_time (float): Seconds each window stays open.

    Raises:
        InputError: If the config has no hook that opens windows.
    """
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise InputError('--show needs default_hooks.visualization, which '
                         'the config does not set. Use --show-dir.')
    switch = 'enable' if cfg.default_scope == 'mmpretrain' else 'draw'
    hook.update({switch: True}, show=True, wait_time=wait_time, interval=1)


def dump_predictions(runner: Runner, path: str) -> None:
    """Write the predictions of a test to a pickle.

    Args:
        runner (Runner): Runner that is about to test.
        path (str): The file. Masks of instances are written as run lengths,
            segmentations as label maps.
    """
    scope = runner.cfg.default_scope
    if scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults as DumpResults
    elif scope == 'mmseg':
        DumpResults = DumpSegResults
    else:
        from mmengine.evaluator import DumpResults
    runner.test_evaluator.metrics.append(DumpResults(out_file_path=path))
