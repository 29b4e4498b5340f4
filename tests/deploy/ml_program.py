"""ML programs computed with PyTorch, where Core ML does not run.

Every operator as Apple's documentation of MIL defines it, so that a package can be
compared with the model it was made from. What Core ML makes of it stays open.
"""
import numpy as np
import torch
import torch.nn.functional as F


def compute(path, images, dtype=torch.float64):
    """Outputs of a package by name.

    Args:
        path (Path): The package.
        images (dict[str, Tensor]): Inputs by name.
        dtype (torch.dtype): What is computed in. Defaults to torch.float64.

    Returns:
        dict[str, Tensor]: Outputs by name.
    """
    import coremltools as ct
    package = ct.models.MLModel(str(path), skip_model_load=True)
    spec = package.get_spec()
    main = ct.converters.mil.frontend.milproto.load.load(
        spec, spec.specificationVersion, package.weights_dir).functions['main']
    values = {name: image.to(dtype) for name, image in images.items()}

    def value(variable):
        if isinstance(variable, (list, tuple)):
            return [value(item) for item in variable]
        return values[variable.name]

    for operation in main.operations:
        if operation.op_type == 'const':
            result = _constant(operation.outputs[0].val, dtype)
        else:
            operator = OPERATORS[operation.op_type]
            result = operator(**{name: value(v) for name, v in operation.inputs.items()
                                 if v is not None})
        results = result if len(operation.outputs) > 1 else [result]
        values.update({v.name: r for v, r in zip(operation.outputs, results)})
    return {output.name: values[output.name] for output in main.outputs}


def _constant(value, dtype):
    if isinstance(value, str):
        return value
    value = np.asarray(value)
    if value.dtype.kind == 'f':
        return torch.tensor(value).to(dtype)
    return torch.tensor(value) if value.ndim else value.item()


def _edges(pad_type, pad):
    if pad_type == 'valid':
        return 0, 0, 0, 0
    assert pad_type == 'custom'
    return pad.tolist()


def _conv(x, weight, strides, pad_type, pad, dilations, groups, bias=None):
    top, bottom, left, right = _edges(pad_type, pad)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias,
                    strides.tolist(), 0, dilations.tolist(), groups)


def _conv_transpose(x, weight, strides, pad_type, pad, dilations, groups, bias=None,
                    output_shape=None):
    top, bottom, left, right = _edges(pad_type, pad)
    out = F.conv_transpose2d(x, weight, bias, strides.tolist(), groups=groups,
                             dilation=dilations.tolist())
    out = out[..., top:out.shape[-2] - bottom, left:out.shape[-1] - right]
    assert output_shape is None or output_shape.tolist() == list(out.shape)
    return out


def _slice(x, begin, end, begin_mask=None, end_mask=None, squeeze_mask=None,
           stride=None):
    index = []
    for i in range(x.ndim):
        first = None if begin_mask is not None and begin_mask[i] else int(begin[i])
        last = None if end_mask is not None and end_mask[i] else int(end[i])
        squeezed = squeeze_mask is not None and squeeze_mask[i]
        step = None if stride is None else int(stride[i])
        index.append(first if squeezed else slice(first, last, step))
    return x[tuple(index)]


def _pad(x, pad, mode, constant_val):
    assert mode == 'constant'
    pairs = pad.view(-1, 2).flip(0)  # F.pad begins with the last dimension
    return F.pad(x, pairs.flatten().tolist(), value=float(constant_val))


def _expand_dims(x, axes):
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _split(x, axis, num_splits=None, split_sizes=None):
    if split_sizes is None:
        return x.chunk(num_splits, axis)
    return x.split(split_sizes.tolist(), axis)


OPERATORS = dict(
    # layers
    conv=_conv,
    conv_transpose=_conv_transpose,
    linear=lambda x, weight, bias=None: F.linear(x, weight, bias),
    batch_norm=lambda x, mean, variance, gamma, beta, epsilon: F.batch_norm(
        x, mean, variance, gamma, beta, eps=epsilon.item()),
    layer_norm=lambda x, axes, gamma, beta, epsilon: F.layer_norm(
        x, [x.shape[axis] for axis in axes], gamma, beta, epsilon.item()),
    gelu=lambda x, mode: F.gelu(
        x, approximate=dict(EXACT='none', TANH_APPROXIMATION='tanh')[mode]),
    relu=lambda x: x.relu(),
    thresholded_relu=lambda x, alpha: torch.where(x >= alpha, x, 0),
    sigmoid_hard=lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    softmax=lambda x, axis: x.softmax(axis),
    # arithmetic
    abs=lambda x: x.abs(),
    add=lambda x, y: x + y,
    clip=lambda x, alpha, beta: x.clamp(alpha, beta),
    exp=lambda x: x.exp(),
    exp2=lambda x: x.exp2(),
    floor=lambda x: x.floor(),
    greater=lambda x, y: x > y,
    inverse=lambda x, epsilon: 1 / (x + epsilon),
    log=lambda x, epsilon: (x + epsilon).log(),
    matmul=lambda x, y, transpose_x=False, transpose_y=False: (
        (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)),
    maximum=lambda x, y: torch.maximum(x, y),
    mul=lambda x, y: x * y,
    pow=lambda x, y: x**y,
    real_div=lambda x, y: x / y,
    rsqrt=lambda x, epsilon: (x + epsilon).rsqrt(),
    select=lambda cond, a, b: torch.where(cond, a, b),
    sign=lambda x: x.sign(),
    sqrt=lambda x: x.sqrt(),
    square=lambda x: x.square(),
    sub=lambda x, y: x - y,
    # reductions
    reduce_l2_norm=lambda x, axes, keep_dims: x.square().sum(
        axes.tolist(), keep_dims).sqrt(),
    reduce_max=lambda x, axes, keep_dims: x.amax(axes.tolist(), keep_dims),
    reduce_mean=lambda x, axes, keep_dims: x.mean(axes.tolist(), keep_dims),
    reduce_sum=lambda x, axes, keep_dims: x.sum(axes.tolist(), keep_dims),
    # shapes and types
    cast=lambda x, dtype: x,  # between float16 and float32 only
    concat=lambda values, axis, interleave: torch.cat(values, axis),
    expand_dims=_expand_dims,
    pad=_pad,
    reshape=lambda x, shape: x.reshape(shape.tolist()),
    reverse=lambda x, axes: x.flip(axes.tolist()),
    slice_by_index=_slice,
    split=_split,
    squeeze=lambda x, axes: x.squeeze(axes.tolist()),
    tile=lambda x, reps: x.repeat(reps.tolist()),
    transpose=lambda x, perm: x.permute(perm.tolist()),
)
