"""Runs that are killed, run out of space or are moved go on as if nothing had been."""
import os
import random
import resource
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from running import LAST, NAMES, checkpoints, equal, kill_after, kill_in_write, run

from mm_efficient.engine.checkpoints import WholeFileBackend

pytestmark = pytest.mark.trials
KILLS = 20  # of each task, half of them inside of a write


@pytest.fixture(params=NAMES, scope='module')
def task(request):
    return request.param


@pytest.fixture(scope='module')
def whole(task, tmp_path_factory):
    """Checkpoint of a run that nothing has interrupted, and its duration in seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp(task))
        run(task, 'first')  # generates data
        start = time.monotonic()
        code, output = run(task, 'whole')
        assert code == 0, output
        yield Path('whole', LAST[task]), time.monotonic() - start


def test_sigkill(task, whole, seed, count):
    path, seconds = whole
    random.seed(seed)
    plans = [lambda at=at: kill_in_write(random.choice([1, 1, 2]), at)
             for at in random.choices(['write', 'replace', 'replaced'], k=KILLS // 2)]
    plans += [lambda: kill_after(random.uniform(0.2, seconds)) for _ in plans]
    random.shuffle(plans)
    killed = lost = finished = same = 0
    while plans or not finished or Path(f'rest{finished}').exists():
        folder = f'rest{finished}'
        before = checkpoints(folder)
        plan = plans.pop() if plans else lambda: None
        code, output = run(task, folder, plan)
        assert code in (0, -9), output
        after = [name for name in checkpoints(folder) if not name.startswith('.')]
        killed += code != 0
        lost += any(not name.startswith('.') for name in before) and not after
        if code == 0:
            finished += 1
            plans[:0] = [plan] if killed < KILLS else []  # came too late: again
            assert checkpoints(folder) == [LAST[task]]
            same += equal(Path(folder, LAST[task]), path)
    count(f'{task}: SIGKILL at random or in a write; {finished} runs resumed to their '
          f'end, {same} bit-equal to an uninterrupted one', tried=killed, lost=lost)
    assert lost == 0 and same == finished and killed == KILLS


def limit_after_first(size):
    """No file may be larger than this from the second checkpoint on."""
    put, calls = WholeFileBackend.put, []

    def limited(self, obj, filepath):
        calls.append(filepath)
        if len(calls) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return put(self, obj, filepath)

    WholeFileBackend.put = limited


# Not 0: the log of the trial is a file, too
@pytest.mark.parametrize('size', [4096, 1 << 16, 1 << 20])
def test_no_space(task, whole, size, count):
    folder = f'space{size}'
    run_out_of_space(
        task, folder, count, lambda: limit_after_first(size),
        f'no space for more than {size} bytes of the second checkpoint')
    assert run(task, folder)[0] == 0 and equal(Path(folder, LAST[task]), whole[0])


def run_out_of_space(task, folder, count, prepare, trial):
    """Train until the second checkpoint does not fit; the first is kept."""
    code, output = run(task, folder, prepare)
    line = output.strip().splitlines()[-1]
    clear = code == 1 and line.startswith('error: ') and 'cannot be written' in line \
        and 'is complete' in line and 'Traceback' not in output
    kept = checkpoints(folder)
    count(f'{task}: {trial}', tried=1, clear=int(clear), lost=int(not kept))
    assert clear, output
    assert kept == [dict(seg='iter_1.pth').get(task, 'epoch_1.pth')]


def test_full_volume(task, whole, count):
    """The work dir is on a volume with room for one checkpoint and a half."""
    path, _ = whole
    Path('volume').mkdir()

    def mount(*arguments):
        return subprocess.run(['mount', '-t', 'tmpfs', '-o', *arguments, 'volume'],
                              capture_output=True, text=True)

    mounted = mount(f'size={path.stat().st_size * 3 // 2}', 'tmpfs')
    if mounted.returncode:
        pytest.skip(f'only an administrator can mount a volume: {mounted.stderr}')
    try:
        run_out_of_space(task, 'volume', count, lambda: None,
                         'a full volume, with half of the second checkpoint')
        assert mount('remount,size=4G', 'tmpfs').returncode == 0
        assert run(task, 'volume')[0] == 0 and equal(Path('volume', LAST[task]), path)
    finally:
        subprocess.run(['umount', 'volume'], check=True)


def test_moved(task, whole, count):
    """Renamed, and copied below another folder, after a first part."""
    path, _ = whole
    same = 0
    for target in (Path('renamed'), Path('else', 'where')):
        run(task, 'rest', lambda: kill_in_write(2, 'replace'))
        target.parent.mkdir(exist_ok=True)
        os.rename('rest', target)
        assert run(task, str(target))[0] == 0
        same += equal(target / LAST[task], path)
        shutil.rmtree(target)
    count(f'{task}: work dir renamed or moved, then resumed; {same} bit-equal', tried=2,
          lost=2 - same)
    assert same == 2
