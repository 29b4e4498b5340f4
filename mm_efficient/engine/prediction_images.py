"""Draw predictions into images."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


def draw_prediction(visualizer: Any, sample: Any, folder: Path) -> None:
    """Draw a prediction into its image, next to the ground truth if there is any.

    Args:
        visualizer (Visualizer): The visualizer of the task.
        sample (DataElement): Prediction with ``img_path``.
        folder (Path): Where to write ``<image name>.jpg``.
    """
    name = Path(sample.img_path).stem
    path = str(folder / f'{name}.jpg')
    image = mmcv.imread(sample.img_path, channel_order='rgb')
    if hasattr(visualizer, 'visualize_cls'):
        visualizer.visualize_cls(
            image, sample, rescale_factor=256 / min(image.shape[:2]), out_file=path)
    else:
        visualizer.add_datasample(
            name, image, data_sample=sample.cpu(), out_file=path)


@HOOKS.register_module()
class SavePredictionImagesHook(Hook):
    """Save an image of every prediction during testing, the same way for all tasks.

    With several processes only rank 0 writes images, of the samples it tests, as
    MMEngine's visualizers do.

    Args:
        out_dir (str): Folder for ``<image name>.jpg``.
    """

    priority = 'LOWEST'

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                        outputs: Sequence[Any] = ()) -> None:
        """Draw the predictions of a batch."""
        for sample in outputs:
            draw_prediction(runner.visualizer, sample, self.out_dir)
