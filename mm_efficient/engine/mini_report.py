"""The report of a ``--mini`` run: metrics before and after training, and images."""
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from ..files import whole_file
from .prediction_images import draw_prediction


def evaluate(runner: Runner) -> dict[str, float]:
    """Evaluate the model on the validation set without calling any hook.

    Args:
        runner (Runner): Runner whose validation loop has already been built.

    Returns:
        dict[str, float]: The metrics.
    """
    loop = runner.val_loop
    runner.model.eval()
    with torch.no_grad():
        for batch in loop.dataloader:
            outputs = runner.model.val_step(batch)
            loop.evaluator.process(data_samples=outputs, data_batch=batch)
    return loop.evaluator.evaluate(len(loop.dataloader.dataset))


@HOOKS.register_module()
class MiniReportHook(Hook):
    """Evaluate before and after training, draw predictions, and report both.

    Args:
        num_images (int): Number of predictions to draw. Defaults to 12.
    """

    priority = 'LOWEST'

    def __init__(self, num_images: int = 12) -> None:
        self.num_images = num_images
        self.metrics: dict[str, float] = {}
        self.num_seen = 0
        self.num_drawn = 0

    def before_train(self, runner: Runner) -> None:
        """Evaluate the untrained model, unless the run is resumed."""
        self.start = time.time()
        self.work_dir = Path(runner.work_dir)
        self.baseline_file = self.work_dir / 'untrained.json'
        if runner.iter > 0 or runner.val_loop is None:
            return
        runner.logger.info('Evaluating the untrained model ...')
        metrics = evaluate(runner)
        if is_main_process():
            with whole_file(self.baseline_file) as draft:
                draft.write_text(json.dumps(
                    {key: float(value) for key, value in metrics.items()}))
        self.start = time.time()

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                       outputs: Sequence[Any] = ()) -> None:
        """Draw evenly spaced predictions of the last validation."""
        if runner.iter < runner.max_iters or not is_main_process() or \
                type(runner.visualizer) is Visualizer:  # which draws no predictions
            return
        every = max(1, len(runner.val_loop.dataloader.dataset) // self.num_images)
        for sample in outputs:
            if self.num_seen % every == 0 and self.num_drawn < self.num_images:
                draw_prediction(
                    runner.visualizer, sample, self.work_dir / 'predictions')
                self.num_drawn += 1
            self.num_seen += 1

    def after_val_epoch(self, runner: Runner,
                        metrics: dict[str, float] | None = None) -> None:
        """Keep the latest metrics."""
        self.metrics = metrics or {}

    def after_train(self, runner: Runner) -> None:
        """Log the report."""
        if not is_main_process():
            return
        minutes = (time.time() - self.start) / 60
        before = {}
        if self.baseline_file.exists():
            before = json.loads(self.baseline_file.read_text())
        rows = [
            'Results on the validation split of the miniature data set:',
            f'{"metric":<28}{"untrained":>12}{"trained":>12}',
            *(f'{key:<28}{before.get(key, float("nan")):>12.3f}{value:>12.3f}'
              for key, value in self.metrics.items()), '',
            f'trained in {minutes:.1f} minutes, including validation',
            *(f'checkpoint: {hook.last_ckpt}' for hook in runner.hooks
              if isinstance(hook, CheckpointHook)),
            f'images of {self.num_drawn} predictions: {self.work_dir / "predictions"}'
        ]
        runner.logger.info('\n'.join(rows))
