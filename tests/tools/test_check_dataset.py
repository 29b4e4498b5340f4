"""The tool lists everything that is wrong with data, not only the first fault."""
import json

import pytest

from mm_efficient.datasets.mini import generate_dataset


@pytest.fixture
def check(tool, capsys):
    def run(*arguments):
        code = 0
        try:
            tool('analysis_tools/check_dataset')([*map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        return code, ' '.join(capsys.readouterr().out.split())

    return run


def test_nothing_is_wrong(tiny, check, config):
    code, said = check(config('seg/soft_tiny_fpn_80k.py'), '--mini')
    assert code == 0 and said.endswith('nothing is wrong')


def test_all_faults_of_a_detector(tiny, check, config):
    root = generate_dataset('coco', 'own', num_train=4, num_val=2)
    path = root / 'annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    del content['annotations'][0]['bbox'], content['annotations'][1]['area']
    path.write_text(json.dumps(content))
    first, second = sorted((root / 'val2017').iterdir())
    first.write_bytes(b'')
    second.write_bytes(second.read_bytes()[:300])  # its header is whole
    code, said = check(config('det/soft_tiny_maskrcnn_1x.py'), '--data-root', root)
    assert code == 1
    for part in ("has no 'bbox'", "has no 'area'", first.name, second.name,
                 '0 bytes', '300 bytes', '5 faults'):
        assert part in said


def test_missing_folders(tiny, check, config):
    code, said = check(config('cls/soft_tiny_300e.py'), '--data-root', 'own',
                       '--limit', '1')
    assert code == 1 and 'own/train does not exist' in said
    assert '2 faults, 1 of them shown' in said
