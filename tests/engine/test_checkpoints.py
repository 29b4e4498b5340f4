"""A checkpoint is whole or not there, and a run always has one."""
import errno
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from mm_efficient import files
from mm_efficient.engine.checkpoints import WholeFileBackend
from mm_efficient.errors import ExecutionError


class Line(BaseModel):

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, *inputs, mode='loss'):
        if mode == 'predict':
            return [self.weight.detach()]
        return dict(loss=(self.weight - torch.stack(inputs)).square().mean())


class Score(Evaluator):
    """Evaluator with given scores, one for each validation."""

    def __init__(self, *scores):
        super().__init__([])
        self.scores = list(scores)

    def process(self, data_samples, data_batch):
        pass

    def evaluate(self, size):
        return dict(score=self.scores.pop(0))


def make(folder, epochs=3, scores=(), resume=None, **checkpoint):
    validation = dict(
        val_dataloader=dict(dataset=[torch.ones(1)],
                            sampler=dict(type='DefaultSampler')),
        val_cfg=dict(), val_evaluator=Score(*scores)) if scores else {}
    return Runner(
        Line(), str(folder), train_cfg=dict(by_epoch=True, max_epochs=epochs),
        train_dataloader=dict(
            dataset=[torch.tensor([float(i)]) for i in range(4)], batch_size=2,
            sampler=dict(type='DefaultSampler')),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=dict(
            type='WholeCheckpointHook', **{'interval': 1, **checkpoint})),
        load_from=resume and str(resume), resume=resume is not None,
        default_scope='mmengine', experiment_name=folder.as_posix().replace('/', '_'),
        log_level='ERROR', randomness=dict(seed=0), **validation)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir() if path.is_file()
                  and path.suffix == '.pth')


def test_the_old_one_goes_when_the_new_one_is_complete(tmp_path, monkeypatch):
    seen = []
    rename = files.os.replace

    def replace(draft, path):
        seen.append((Path(path).name, names(tmp_path)))
        rename(draft, path)

    monkeypatch.setattr(files.os, 'replace', replace)
    make(tmp_path, max_keep_ckpts=1).train()
    assert seen[0][0] == 'epoch_1.pth' and seen[1][0] == 'last_checkpoint'
    for epoch, (name, there) in zip((2, 3), seen[2::2]):
        assert name == f'epoch_{epoch}.pth' and f'epoch_{epoch - 1}.pth' in there
    assert names(tmp_path) == ['epoch_3.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == 'epoch_3.pth'


@pytest.mark.parametrize('kept', [1, 2, -1])
def test_resumed_runs_keep_as_many(tmp_path, kept):
    make(tmp_path, 2, max_keep_ckpts=kept).train()
    make(tmp_path, 4, max_keep_ckpts=kept, resume=tmp_path / 'epoch_2.pth').train()
    count = 4 if kept < 0 else kept
    assert names(tmp_path) == [f'epoch_{i}.pth' for i in range(5 - count, 5)]


def test_killed_before_the_old_one_is_removed(tmp_path, monkeypatch):
    make(tmp_path, 1, max_keep_ckpts=1).train()

    def killed(self, *needed):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(WholeFileBackend, 'remove_outdated', killed)
        make(tmp_path, 3, max_keep_ckpts=1, resume=tmp_path / 'epoch_1.pth').train()
    assert names(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']
    make(tmp_path, 3, max_keep_ckpts=1, resume=tmp_path / 'epoch_2.pth').train()
    assert names(tmp_path) == ['epoch_3.pth']


def test_disk_full(tmp_path, monkeypatch):
    make(tmp_path, 1, max_keep_ckpts=1).train()
    write = Path.write_bytes

    def full(path, content):
        write(path, content[:len(content) // 2])
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(ExecutionError) as error:
        make(tmp_path, 2, max_keep_ckpts=1, resume=tmp_path / 'epoch_1.pth').train()
    assert 'epoch_2.pth cannot be written: No space left' in str(error.value)
    assert '\n' not in str(error.value)
    assert names(tmp_path) == ['epoch_1.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == 'epoch_1.pth'


def test_drafts_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / '.epoch_1.4711.tmp.pth').write_bytes(b'half')
    (tmp_path / 'mine.tmp.pth').write_bytes(b'whole')
    make(tmp_path, 1).train()
    assert names(tmp_path) == ['epoch_1.pth', 'mine.tmp.pth']


def test_best_checkpoint(tmp_path):
    options = dict(save_best='score', rule='greater', max_keep_ckpts=1)
    make(tmp_path, 3, (0.1, 0.5, 0.3), **options).train()
    assert names(tmp_path) == ['best_score_epoch_2.pth', 'epoch_3.pth']
    moved = tmp_path.parent / f'{tmp_path.name}_moved'
    tmp_path.rename(moved)
    tmp_path.mkdir()
    (tmp_path / 'best_score_epoch_2.pth').write_bytes(b'of another run')
    make(moved, 4, (0.7, ), resume=moved / 'epoch_3.pth', **options).train()
    assert names(moved) == ['best_score_epoch_4.pth', 'epoch_4.pth']
    assert names(tmp_path) == ['best_score_epoch_2.pth']  # not what the path once was
