"""The few repairs that let stock OpenMMLab run on current PyTorch."""


def apply():
    """Apply every repair this environment needs."""
