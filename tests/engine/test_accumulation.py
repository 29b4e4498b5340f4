from types import SimpleNamespace

from mmengine.optim import build_optim_wrapper
from torch import nn

from mm_efficient.engine.accumulation import AccumulationRestartHook


def test_accumulation_restarts_every_epoch():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    wrapper = build_optim_wrapper(model, dict(
        optimizer=dict(type='SGD', lr=1.), accumulative_counts=2))
    wrapper.initialize_count_status(model, 0, 6)
    runner = SimpleNamespace(optim_wrapper=wrapper, model=model)
    weights = []
    for _ in range(2):  # of three iterations: the third is left over
        AccumulationRestartHook().before_train_epoch(runner)
        for gradient in (1., 3., 100.):
            wrapper.update_params(gradient * model.weight.sum())
            weights.append(-model.weight.item())
    assert weights == [0, 2, 2, 2, 4, 4]
