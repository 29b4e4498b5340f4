"""Runs in processes of their own, which may be killed."""
import json
import os
import random
import signal
import sys
import threading
from pathlib import Path

import torch
from mmengine import dist
from mmengine.hooks import Hook

from mm_efficient import runs
from mm_efficient.errors import error_line
from mm_efficient.runs import build_runner, mini, prepare_training

NAMES = dict(cls='soft_tiny_300e.py', det='soft_tiny_maskrcnn_1x.py',
             seg='soft_tiny_fpn_80k.py')
LAST = dict(cls='epoch_3.pth', det='epoch_3.pth', seg='iter_6.pth')
generate = mini.generate_dataset


def train(task, folder, **options):
    """A few iterations, with a checkpoint after each epoch or iteration."""
    use_few_images(4, 2)
    key, value = ('max_iters', 6) if task == 'seg' else ('max_epochs', 3)
    length = {f'train_cfg.{key}': value}
    runs.train(NAMES[task], work_dir=folder, mini=True, auto_resume=True, cfg_options={
        'train_dataloader.batch_size': 2, 'log_level': 'ERROR', **length,
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.checkpoint.max_keep_ckpts': 1,
        'val_dataloader': None, 'val_cfg': None, 'val_evaluator': None, **options})


def start(function, log, **environment):
    """Call a function in a process of its own; what it prints goes into a file.

    Returns:
        int: The process, for :func:`finish`.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stderr = os.fdopen(2, 'w', buffering=1)  # pytest has its own
        os.environ.update(environment)
        torch.set_num_threads(1)
        with error_line():
            function()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        if isinstance(stop.code, str):
            os.write(2, stop.code.encode())
    except BaseException:
        import traceback
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def finish(child, log):
    """Wait for a process.

    Returns:
        tuple[int, str]: Its exit code, negative after a signal, and what it printed.
    """
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, Path(log).read_text(errors='replace')


def run(task, folder, prepare=lambda: None, **options):
    """Train in a process of its own; returns its exit code and what it printed."""
    def prepare_and_train():
        prepare()
        train(task, folder, **options)

    log = f'{folder}.log'
    return finish(start(prepare_and_train, log), log)


class LossRecorder(Hook):
    """Keeps the losses, each the mean of all processes."""

    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        loss = outputs['loss'].detach().float().clone()
        dist.all_reduce(loss, 'mean')
        self.losses.append(float(loss))


def use_few_images(num_train, num_val):
    """Let ``--mini`` have few images, half as large as usual."""
    mini.generate_dataset = lambda name: generate(
        name, num_train=num_train, num_val=num_val)
    for recipe in mini.RECIPES.values():
        recipe['size'] = 64


def record(name, folder, num_train, num_val=2, launcher='none', **options):
    """Train on few small images and write the losses to ``FOLDER.json``."""
    use_few_images(num_train, num_val)
    runner = build_runner(prepare_training(
        name, work_dir=folder, mini=True, launcher=launcher, cfg_options={
            'log_level': 'ERROR', 'val_dataloader': None, 'val_cfg': None,
            'val_evaluator': None, 'default_hooks.checkpoint.interval': 1000,
            'default_hooks.checkpoint.save_last': False, **options}))
    recorder = LossRecorder()
    runner.register_hook(recorder)
    runner.train()
    if dist.is_main_process():
        Path(f'{folder}.json').write_text(json.dumps(recorder.losses))


def evaluate(name, checkpoint, folder, launcher='none', **options):
    """Test on the images that are there and write the metrics to ``FOLDER.json``."""
    mini.generate_dataset = lambda name: None
    for recipe in mini.RECIPES.values():
        recipe['size'] = 64
    metrics = runs.test(name, checkpoint, work_dir=folder, launcher=launcher, mini=True,
                        cfg_options={'log_level': 'ERROR', **options})
    if dist.is_main_process():
        Path(f'{folder}.json').write_text(json.dumps(metrics, default=float))


def kill_after(seconds):
    """Let this process be killed after a time."""
    threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()


def kill_in_write(number, at):
    """Let this process be killed inside its n-th checkpoint.

    Args:
        number (int): Which checkpoint.
        at (str): 'write', after a random part of it; 'replace', before it is renamed;
            'replaced', after that and before the older one is removed.
    """
    writes = [number]
    write, replace = Path.write_bytes, os.replace

    def write_bytes(path, data):
        writes[0] -= 1
        if writes[0] == 0 and at == 'write':
            write(path, data[:random.randrange(len(data))])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, data)

    def replace_file(source, target):
        if writes[0] == 0 and at == 'replaced':
            replace(source, target)
        if writes[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    Path.write_bytes, os.replace = write_bytes, replace_file


def checkpoints(folder):
    """Names of the checkpoints in a folder, and of parts of any."""
    return sorted(path.name for path in Path(folder).glob('*.pth*')) + \
        sorted(path.name for path in Path(folder).glob('.*.tmp.pth'))


def equal(first, second):
    """Whether two checkpoints have the same weights and optimizer, to the last bit."""
    states = [torch.load(path, weights_only=False) for path in (first, second)]
    weights = [state['state_dict'] for state in states]
    moments = [{(key, name): value for key, slots in state['optimizer']['state'].items()
                for name, value in slots.items()} for state in states]
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
               for a, b in (weights, moments))
