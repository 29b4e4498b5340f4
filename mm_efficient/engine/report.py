"""What runs write beside logs and checkpoints: images, predictions, a report."""
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint
from mmengine.structures import BaseDataElement

from ..files import whole_file


def evaluate(runner: Runner) -> dict[str, float]:
    """Run the validation set through the model, without any hook.

    Args:
        runner (Runner): Runner with a validation loop.

    Returns:
        dict[str, float]: The metrics.
    """
    loop: Any = runner.val_loop
    runner.model.eval()
    with torch.no_grad():
        for batch in loop.dataloader:
            outputs = runner.model.val_step(batch)
            loop.evaluator.process(data_samples=outputs, data_batch=batch)
    return loop.evaluator.evaluate(len(loop.dataloader.dataset))


def draw_prediction(visualizer: Any, sample: Any, folder: Path) -> None:
    """Draw the prediction for an image, beside the ground truth if there is one.

    Args:
        visualizer (Visualizer): The task's.
        sample (BaseDataElement): Prediction, with ``img_path``.
        folder (Path): Where to write ``<image name>.jpg``.
    """
    name = Path(sample.img_path).stem
    path = folder / f'{name}.jpg'
    image = mmcv.imread(sample.img_path, channel_order='rgb')
    if hasattr(visualizer, 'visualize_cls'):
        visualizer.visualize_cls(
            image, sample, rescale_factor=256 / min(image.shape[:2]),
            out_file=str(path))
    else:
        visualizer.add_datasample(
            name, image, data_sample=sample.cpu(), out_file=str(path))


@HOOKS.register_module()
class PredictionImageHook(Hook):
    """Write an image with every prediction of a test.

    Same for the three tasks: ``out_dir/<image name>.jpg``. Of several processes only
    the first draws, its share of the images, as MMEngine's visualizers do.

    Args:
        out_dir (str): Folder to write to.
    """

    priority = 'LOWEST'

    def __init__(self, out_dir: str):
        self.out_dir = Path(out_dir)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                        outputs: Sequence[BaseDataElement] | None = None) -> None:
        """Draw the predictions of a batch."""
        for sample in outputs or ():
            draw_prediction(runner.visualizer, sample, self.out_dir)


class DumpSegResults(DumpResults):
    """Write the label maps of a segmentor to a pickle.

    Leaves out the ground truth and the scores of all classes, which take 180 MB for an
    image of 640 x 480 pixels and 150 classes.
    """

    def process(self, data_batch: Any, predictions: Sequence[dict]) -> None:
        """Keep the label maps of a batch, (1, H, W) each."""
        for sample in predictions:
            kept = {
                key: value for key, value in sample.items()
                if key not in ('seg_logits', 'gt_sem_seg')
            }
            labels = sample['pred_sem_seg']['data']
            kept['pred_sem_seg'] = dict(data=labels.to('cpu', torch.int16))
            self.results.append(kept)


@HOOKS.register_module()
class MiniReportHook(Hook):
    """Report metrics before and after a short training, and draw predictions.

    Args:
        num_images (int): Number of predictions to draw. Defaults to 12.
    """

    priority = 'LOWEST'

    def __init__(self, num_images: int = 12):
        self.num_images = num_images
        self.metrics: dict[str, float] = {}
        self.seen = 0
        self.drawn = 0

    def before_train(self, runner: Runner) -> None:
        """Evaluate the untrained model, unless training is resumed."""
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
                       outputs: Sequence[BaseDataElement] | None = None) -> None:
        """Draw some predictions of the last validation."""
        if runner.iter < runner.max_iters or not is_main_process():
            return
        loop: Any = runner.val_loop
        every = max(1, len(loop.dataloader.dataset) // self.num_images)
        for sample in outputs or ():
            if self.seen % every == 0 and self.drawn < self.num_images:
                draw_prediction(
                    runner.visualizer, sample, self.work_dir / 'predictions')
                self.drawn += 1
            self.seen += 1

    def after_val_epoch(self, runner: Runner,
                        metrics: dict[str, float] | None = None) -> None:
        """Keep the latest metrics."""
        self.metrics = metrics or {}

    def after_train(self, runner: Runner) -> None:
        """Print the report."""
        if not is_main_process():
            return
        minutes = (time.time() - self.start) / 60
        before = {}
        if self.baseline_file.exists():
            before = json.loads(self.baseline_file.read_text())
        rows = [f'{"metric":<28}{"untrained":>12}{"trained":>12}']
        rows += [
            f'{key:<28}{before.get(key, float("nan")):>12.3f}{value:>12.3f}'
            for key, value in self.metrics.items()
        ]
        rows += [
            '', f'trained in {minutes:.1f} minutes, validation included',
            f'checkpoint: {find_latest_checkpoint(runner.work_dir)}',
            f'images of {self.drawn} predictions: {self.work_dir / "predictions"}'
        ]
        runner.logger.info('Miniature data set, validation split, before and after '
                           'training:\n' + '\n'.join(rows))
