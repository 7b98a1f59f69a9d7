"""Questions to autograd's engine about the backward pass that is running."""

from collections.abc import Iterable, Sequence
from itertools import repeat

import torch
from torch.autograd.graph import Node

_engine_runs = getattr(torch._C, "_will_engine_execute_node", lambda node: True)  # torch.autograd.graph uses it too


def used_inputs(ctx, needs_grad: Sequence[bool], given: Iterable[bool] = repeat(True)) -> tuple[bool, ...]:
    """Whether the running backward pass uses the gradient of each tensor input of a Function.

    `ctx.needs_input_grad` is True for every tensor with a graph, even in an `autograd.grad` for the images alone
    (pytorch issue 174017). With it, gradient penalties and path length would compute gradients of parameters that
    nobody reads.

    Args:
        ctx: of the Function.
        needs_grad: the part of `ctx.needs_input_grad` that belongs to the tensors, beginning with the first one.
        given: False where the Function was given None in place of a tensor.
    """
    edges = iter(ctx.next_functions)  # one for each tensor
    nodes = [next(edges, (None, 0))[0] if there else None for _, there in zip(needs_grad, given, strict=False)]
    return tuple([need and _is_used(node) for need, node in zip(needs_grad, nodes, strict=True)])


def every_node_runs(node: Node) -> bool:
    """Whether the running pass is a plain `backward()`. Other passes run some nodes, and may return any gradient.

    node: of the graph that the pass runs through. Its nearest leaf tells, which `autograd.grad` does not accumulate in.
    """
    nodes = [node]
    for each in nodes:  # breadth first
        following = [after for after, _ in each.next_functions if after is not None and after not in nodes]
        if not following:
            try:
                return _engine_runs(each)
            except RuntimeError:  # as in `_is_used`
                return False
        nodes += following
    return False


def _is_used(node) -> bool:
    try:
        return _engine_runs(node)
    except RuntimeError:  # raised for a leaf among the inputs of `autograd.grad`
        return True
