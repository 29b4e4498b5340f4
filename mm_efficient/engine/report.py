"""What runs show: pictures, predictions, and --mini before against after."""
import json
import os
import time
from pathlib import Path

import mmcv
import torch
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import find_latest_checkpoint


def evaluate(runner):
    """Run the validation set through the model, without any hook.

    Args:
        runner (Runner): Runner whose validation loop is built.

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


def draw(visualizer, sample, folder):
    """Draw the prediction for an image, beside the truth where there is one.

    Args:
        visualizer (Visualizer): Of the task.
        sample (DataElement): Prediction, with ``img_path``.
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
class PictureHook(Hook):
    """Write a picture of every prediction of a test.

    The same for the three tasks: ``out_dir/<image name>.jpg``. Of several
    processes only the first draws, its share of the pictures, as MMEngine's
    visualizers do.

    Args:
        out_dir (str): Folder to write to.
    """

    priority = 'LOWEST'

    def __init__(self, out_dir):
        self.out_dir = Path(out_dir)

    def after_test_iter(self, runner, batch_idx, data_batch=None,
                        outputs=None):
        """Draw the predictions of a batch."""
        for sample in outputs:
            draw(runner.visualizer, sample, self.out_dir)


class DumpSegResults(DumpResults):
    """Write the label maps of a segmentor to a pickle.

    Without the scores of every class, which take 180 MB for a photograph of
    640 x 480 and 150 classes, and without the truth.
    """

    def process(self, data_batch, predictions):
        """Keep the labels of a batch, (1, H, W) each."""
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
    """Evaluate before and after training, draw predictions, report it all.

    Args:
        num_pictures (int): Number of pictures to draw. Defaults to 12.
    """

    priority = 'LOWEST'

    def __init__(self, num_pictures=12):
        self.num_pictures = num_pictures
        self.metrics = {}
        self.seen = 0
        self.pictures = 0

    def before_train(self, runner):
        """Evaluate the model as initialized, unless training is resumed."""
        self.start = time.time()
        self.work_dir = Path(runner.work_dir)
        self.baseline_file = self.work_dir / 'untrained.json'
        if runner.iter > 0 or runner.val_loop is None:
            return
        runner.logger.info('Evaluating the untrained model ...')
        metrics = evaluate(runner)
        if is_main_process():
            draft = self.baseline_file.with_suffix('.tmp')
            draft.write_text(json.dumps(
                {key: float(value) for key, value in metrics.items()}))
            os.replace(draft, self.baseline_file)
        self.start = time.time()

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Draw predictions all over the last validation."""
        if runner.iter < runner.max_iters or not is_main_process():
            return
        loader = runner.val_loop.dataloader
        every = max(1, len(loader.dataset) // self.num_pictures)
        for sample in outputs:
            if self.seen % every == 0 and self.pictures < self.num_pictures:
                draw(runner.visualizer, sample, self.work_dir / 'predictions')
                self.pictures += 1
            self.seen += 1

    def after_val_epoch(self, runner, metrics=None):
        """Keep the latest metrics."""
        self.metrics = metrics or {}

    def after_train(self, runner):
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
            f'pictures of {self.pictures} predictions: '
            f'{self.work_dir / "predictions"}'
        ]
        runner.logger.info('Miniature data set, same settings, validation '
                           'part:\n' + '\n'.join(rows))
