"""Metric that dumps the predictions of segmentors to a file."""
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import DumpResults
from mmengine.registry import METRICS


@METRICS.register_module()
class DumpSegResults(DumpResults):
    """Dump the predicted label maps of a segmentor to a pickle.

    Leaves out the class scores, 180 MB for an image of 640 x 480 pixels and 150
    classes, and the ground truth.

    Args:
        out_file_path (str): The file, ending with ``.pkl`` or ``.pickle``.
    """

    def process(self, data_batch: Any, predictions: Sequence[dict[str, Any]]) -> None:
        """Keep the label maps of a batch, each (1, H, W), int16."""
        for sample in predictions:
            kept = {key: value for key, value in sample.items()
                    if key not in ('seg_logits', 'gt_sem_seg')}
            labels = sample['pred_sem_seg']['data']
            kept['pred_sem_seg'] = dict(data=labels.to('cpu', torch.int16))
            self.results.append(kept)
