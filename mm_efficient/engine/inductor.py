"""Repairs of Inductor, for compiled trainings with images of any size."""
from collections.abc import Sequence
from typing import Any

import torch


def compile_for_any_size() -> None:
    """Let Inductor compile backbones whose image size is a variable.

    Its analysis of memory access, which by PyTorch's own comment does not apply to such
    sizes, fails for EcoFormer on a GPU, and is turned off. What PyTorch 2.15 does with
    strides is backported: before, Inductor compares them as formulas, such as
    ``256 * h * w < 256``, which SymPy cannot decide, so EcoFormer and ReduceFormer do
    not compile for training; and it compiles the backward pass for the strides of the
    first image, so LowFormer is compiled again for every size.
    """
    try:
        from torch._guards import TracingContext
        from torch._inductor import config, ir, output_code
        from torch._inductor.virtualized import V
        if hasattr(config.triton, 'coalesce_tiling_analysis'):
            config.triton.coalesce_tiling_analysis = False
        sort, report = ir.get_fill_order, output_code.set_tracing_context_output_strides
    except (ImportError, AttributeError):  # PyTorch is too old for these repairs
        return
    if torch.__version__ >= '2.15' or hasattr(sort, 'repaired'):  # compares versions
        return

    def sort_sizes(seq: Sequence, shape_env: Any = None) -> Sequence[int]:
        return sort(seq, shape_env or V.graph.sizevars.shape_env)

    def report_symbols(example_inputs: Sequence, compiled_graph: Any) -> None:
        context: Any = TracingContext.try_get()
        if context is None:
            return
        # PyTorch's own way to keep symbols, which it takes for another reason
        before, context.fakify_first_call = context.fakify_first_call, True
        try:
            report(example_inputs, compiled_graph)
        finally:
            context.fakify_first_call = before

    sort_sizes.repaired = True  # type: ignore[attr-defined]
    ir.get_fill_order = sort_sizes
    output_code.set_tracing_context_output_strides = report_symbols
