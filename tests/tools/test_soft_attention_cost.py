import pytest
import torch
from torch.autograd.function import BackwardCFunction

from mm_efficient.models.soft.gaussian_attention import landmark_kernel
from mm_efficient.models.soft.newton_inverse import regularized_inverse


@pytest.fixture(scope='module')
def main(tool):
    return tool('analysis_tools/soft_attention_cost')


def custom_functions(output):
    """Names of the hand-written autograd functions behind a tensor."""
    found, nodes = [], [output.grad_fn]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if isinstance(node, BackwardCFunction):
            found.append(type(node).__name__)
        new = {child for child, _ in node.next_functions if child} - seen
        seen |= new
        nodes += new
    return sorted(found)


@pytest.mark.parametrize('flags, inverse', [
    ([], '_ImplicitInverseBackward'), (['--normalized'], '_NewtonIterationBackward')])
def test_forms_are_two_implementations_of_one_function(main, flags, inverse):
    """Only the fast form has custom gradients: Tiny has six blocks in stages 1 to 3."""
    tool = main.__globals__
    args = tool['parse_args']([*flags, '--shape', '64'])
    outs, functions, flops = [], [], []
    for reference in (False, True):
        with tool['form'](reference):
            model = tool['build'](args, None).double().eval()
            outs.append(model(torch.ones(1, 3, 64, 64, dtype=torch.float64))[2])
        functions.append(custom_functions(outs[-1].sum()))
        flops.append(tool['count_flops'](args, None, reference))
    assert functions == [['_GaussianAttentionBackward'] * 6 + [inverse] * 6, []]
    assert flops[0] != flops[1]  # of the attention; the inverse has the same
    torch.testing.assert_close(*outs, rtol=0, atol=1e-9 * outs[0].abs().max().item())


def test_reference_inverse_of_the_plain_family(main):
    kernel = landmark_kernel(torch.randn(2, 3, 9, 8, dtype=torch.float64))
    plain = main.__globals__['regularized_inverse_reference'](kernel)
    torch.testing.assert_close(plain, regularized_inverse(kernel))


def test_table(main, monkeypatch, capsys):
    monkeypatch.setitem(main.__globals__, 'in_own_process', lambda run, *a: run(*a))
    monkeypatch.setitem(main.__globals__, 'MIN_SECONDS', 0)
    main(['--shape', '256', '--forward-only'])
    rows = [[cell.strip() for cell in line.split('│')[1:-1]]
            for line in capsys.readouterr().out.splitlines() if '│' in line]
    assert [row[:2] for row in rows] == [
        [size, form] for form in ('fast', 'reference') for size in ('224', 'None')]
    assert float(rows[0][2]) < 0.98 * float(rows[1][2])  # no more landmarks
    seconds, ratios = ([float(row[column]) for row in rows] for column in (3, 4))
    assert min(seconds) > 0 and ratios[0] == 1
    for value, ratio in zip(seconds, ratios):  # printed with two digits
        assert abs(ratio * seconds[0] - value) <= 0.006 * (1 + ratio + value)
