import pytest
from recorded import load, operator_tensors


@pytest.fixture(scope='session')
def arrays():
    return load('cases.npz')


@pytest.fixture(scope='session')
def operators():
    return operator_tensors()
