"""Damaged files are recognised, wherever they are read."""
import random

import pytest
import torch
from mmengine.runner.checkpoint import CheckpointLoader
from safetensors.torch import save_file

from mm_efficient.errors import InputError
from mm_efficient.models.soft.backbone import SOFT
from mm_efficient.weights.checking import check_checkpoint
from mm_efficient.weights.conversion import CheckpointError
from mm_efficient.weights.reading import read_untrusted
from mm_efficient.weights.unpickling import find_damage


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / 'weights.pth'
    torch.save({'state_dict': {'weight': torch.rand(500), 'bias': torch.rand(9)}}, path)
    return path


def test_every_flipped_bit_of_the_weights(path):
    whole = path.read_bytes()
    weight = torch.load(path)['state_dict']['weight'].numpy().tobytes()
    start = whole.index(weight)
    for position in random.Random(0).sample(range(len(weight)), 60):
        damaged = bytearray(whole)
        damaged[start + position] ^= 1 << position % 8
        path.write_bytes(damaged)
        for read in (read_untrusted, check_checkpoint):
            with pytest.raises(CheckpointError, match='weights.pth.*: the file is dam'):
                read(str(path))
    path.write_bytes(whole)
    assert find_damage(path) is None
    found = check_checkpoint(str(path))['state_dict']['weight']
    assert found.numpy().tobytes() == weight


def test_flipped_bits_anywhere(path):
    """What cannot be seen does not change what is read."""
    whole, expected = path.read_bytes(), torch.load(path)['state_dict']
    for position in random.Random(1).sample(range(len(whole)), 200):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            found = read_untrusted(str(path))['state_dict']
        except CheckpointError as error:
            assert 'weights.pth' in str(error)
        else:
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_files_without_checksums(tmp_path):
    torch.save({'x': torch.zeros(1)}, tmp_path / 'old.pth',
               _use_new_zipfile_serialization=False)
    assert find_damage(tmp_path / 'old.pth') is None
    assert check_checkpoint(str(tmp_path / 'old.pth'))


def test_safetensors_everywhere(tmp_path):
    backbone = SOFT('tiny')
    path = str(tmp_path / 'soft.safetensors')
    save_file({key: value + 1 for key, value in backbone.state_dict().items()}, path)
    assert set(check_checkpoint(path)) == set(backbone.state_dict())
    assert set(CheckpointLoader.load_checkpoint(path, 'cpu')) == set(
        backbone.state_dict())
    model = SOFT('tiny', init_cfg=dict(type='Pretrained', checkpoint=path))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    model.init_weights()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key] + 1)
    (tmp_path / 'cut.safetensors').write_bytes(open(path, 'rb').read(1000))
    with pytest.raises(InputError, match='cut.safetensors .*incomplete one'):
        check_checkpoint(str(tmp_path / 'cut.safetensors'))


def test_weights_only_by_force(tmp_path, monkeypatch):
    from mmengine.logging import HistoryBuffer
    path = str(tmp_path / 'epoch_1.pth')
    torch.save({'message_hub': HistoryBuffer([1], [1])}, path)
    assert check_checkpoint(path)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    assert check_checkpoint(path)
