"""What goes wrong while data are read names the file."""
import json
import random

import numpy as np
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmengine.config import Config
from mmengine.dataset import BaseDataset, ConcatDataset
from torch import nn

from mm_efficient.errors import ExecutionError, InputError, ReportedError
from mm_efficient.runs.failures import (
    NamedPipeline,
    SampleError,
    check_first_sample,
    entries,
    find_cause,
    name_files,
    no_empty_work_dir,
)
from mm_efficient.runs.work_dirs import LOCK


class Samples(BaseDataset):

    def load_data_list(self):
        return [dict(img_path=f'{i}.jpg') for i in range(3)]


def fail(data):
    raise KeyError('mask')


def samples(*steps, **options):
    dataset = Samples(**options)
    dataset.pipeline.transforms[:] = steps
    name_files(ConcatDataset([dataset]))
    assert isinstance(dataset.pipeline, NamedPipeline)
    return dataset


def test_the_file_is_named():
    with pytest.raises(SampleError, match=r"1.jpg cannot be loaded: KeyError: 'mask'"):
        samples(fail)[1]
    assert samples(lambda data: data)[1]['img_path'] == '1.jpg'


def test_nothing_can_be_read():
    with pytest.raises(SampleError, match=r'jpg cannot be .* 4 samples tried before'):
        samples(lambda data: None, max_refetch=4)[0]
    with pytest.raises(SampleError, match='2.jpg cannot be loaded'):
        samples(lambda data: None, test_mode=True)[2]


def test_attributes_are_those_of_the_pipeline():
    dataset = samples(fail)
    assert dataset.pipeline.transforms == [fail]


def test_entries_of_large_files_are_named_when_they_are_read(tmp_path):
    """Too large to be parsed before: MMDetection's error is looked up in the file."""
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(dict(
        images=[dict(id=1, file_name='1.jpg', height=9, width=9)], categories=[
            dict(id=1, name='x')],
        annotations=[dict(id=1, image_id=1, category_id=1, bbox=[1, 1])])))
    cfg = Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dict(
        type='CocoDataset', ann_file=str(path), metainfo=dict(classes=('x', ))))))
    with pytest.raises(InputError, match=r"a.json: annotations\[0\] .*'bbox' \[1, 1"), \
            find_cause(cfg, ('train', )):
        raise ValueError('not enough values to unpack')
    path.write_text('{"images": [{"id": 1, "file_name": "1", "height": 1, "width": 1}],'
                    '"annotations": [], "categories": [{"id": 1, "name": "x"}]}')
    with pytest.raises(ZeroDivisionError), find_cause(cfg, ('train', )):
        raise ZeroDivisionError


def test_one_value_per_channel():
    cfg = Config(dict(train_dataloader=dict(batch_size=1, dataset=dict())))
    with pytest.raises(InputError, match='image with a map of 1 x 1.*batch_size=1'), \
            find_cause(cfg, ()):
        raise ValueError('Expected more than 1 value per channel when training')


def test_what_cannot_start_leaves_nothing(tmp_path):
    for before in (False, True):
        path = tmp_path / str(before)
        path.mkdir()
        (path / LOCK).touch()
        if before:
            (path / 'older').touch()
        with pytest.raises(ExecutionError, match="has failed: KeyError: 'x' .*l"), \
                no_empty_work_dir(path, not entries(path)):
            (path / 'log').mkdir()
            raise KeyError('x')
        assert (path / 'log').exists() == before and (path / LOCK).exists()


@pytest.mark.parametrize('started, name', [(True, 'log'), (False, 'iter_1.pth')])
def test_what_has_started_stays(tmp_path, started, name):
    (tmp_path / name).touch()
    with pytest.raises(KeyError if started else ExecutionError), \
            no_empty_work_dir(tmp_path, True, lambda: started):
        raise KeyError('x')
    assert (tmp_path / name).exists()


def test_errors_in_own_modules_keep_their_traceback(tmp_path):
    with pytest.raises(KeyError), no_empty_work_dir(tmp_path / 'work', True):
        fail({})


@pytest.mark.parametrize('sample, message', [
    (True, r"gives no inputs .* \['img_path', 'sample_idx'\].*PackDetInputs"),
    (None, 'cannot be loaded, or has no objects')])
def test_pipelines_that_do_not_end(sample, message):
    model = nn.Module()
    model.data_preprocessor = DetDataPreprocessor()
    before = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state()
    dataset = samples(lambda data: np.random.rand() and sample and data, max_refetch=3)
    with pytest.raises(InputError, match=message):
        check_first_sample(dataset, model, 'train')
    if sample:
        assert np.random.get_state()[1].tolist() == before[0]
        assert random.getstate() == before[1]
        assert (torch.get_rng_state() == before[2]).all()
    check_first_sample(samples(lambda data: dict(inputs=1)), model, 'train')
    check_first_sample(samples(lambda data: data), nn.Module(), 'train')


def test_a_lost_connection_is_reported_by_the_process_that_ended():
    message = '[gloo/transport/tcp/pair.cc:538] Read error: Connection reset by peer'
    with pytest.raises(ReportedError), find_cause(Config(), ()):
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match='^another$'), find_cause(Config(), ()):
        raise RuntimeError('another')
