"""Graphs of work on a CPU, the counterpart of CUDA graphs: its tensor operations, run again without anything else.

A small step spends most of its time between its operations: in modules, autocast, the autograd engine, and the Python
side of fused operations. A replay leaves that out. The graph is one of `torch.fx`, of the operations below autograd as
PyTorch and the launchers of `fastgan_kernels` execute them. Those of backward passes and optimizers are among them, so
a replay computes the same numbers, bit by bit.

The rules for the work are those of `fastgan.runs.graphs`. But random numbers come from the CPU's default generator,
which the work may seed (see `repeated`), and memory is allocated and freed as in the work itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from fastgan.ops.constants import kept_in_mode
from fastgan.runs.graphs import Captured
from fastgan_kernels.launches import observed_by

_READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

_recording: ContextVar[_Recording | None] = ContextVar("fastgan_cpu_graph", default=None)


def repeated(function: Callable[[], Any]) -> None:
    """Call `function` now, and again at this place of every replay if the work around it is being captured.

    For what is no operation on tensors, such as seeding a generator.
    """
    recording = _recording.get()
    if recording is None:
        function()
        return
    with _disable_current_modes():
        function()
    recording.add_call(function)


class CpuRecorder:
    """`fastgan.runs.graphs.Recorder` for the CPU. It captures the work while it runs."""

    runs_work = True

    def warm_up(self, work: Callable[[], Any]) -> Any:
        return work()

    def capture(self, work: Callable[[], Any]) -> Captured:
        recording = _Recording()
        token = _recording.set(recording)
        try:
            with observed_by(recording.add_launch), kept_in_mode(), recording:
                result = work()
        finally:
            _recording.reset(token)
        replay = None if recording.why_not else recording.finished()
        return Captured(replay, result, recording.why_not)

    def clear(self) -> None:
        pass


class _Recording(TorchDispatchMode):
    """Adds the operations within the block to a graph.

    A tensor is known by its memory, sizes and strides: autograd has several objects for the same one. Views are not
    recorded. One that an operation reads is made anew, from any tensor in the same memory.

    Attributes:
        why_not: why the work cannot be captured, once that is known. It still runs to its end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.why_not: str | None = None
        self._graph = Graph()
        self._constants: dict[str, Any] = {}  # what is there before the work: parameters, inputs, launchers
        self._nodes: dict[tuple, Node] = {}  # by memory, sizes and strides
        self._made: dict[tuple, Node] = {}  # by memory: the first tensor there that the work has made
        self._storages: dict[int, StorageWeakRef] = {}  # as long as it is kept, no other storage gets the number
        self._effects: set[Node] = set()  # nodes that are needed although nobody reads their result

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if self.why_not is None and operation.namespace != "profiler":
            self._add(operation, args, kwargs or {}, result)
        return result

    def _add(self, operation, args: tuple, kwargs: dict, result: Any) -> None:
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        if _READS & set(operation.tags) and kwargs.get("output_size") is None:
            self.why_not = f"{operation} makes Python wait for a tensor"
        elif any(x.layout is not torch.strided or x.is_conj() or x.is_neg() for x in (*inputs, *outputs)):
            self.why_not = f"{operation} reads or makes a tensor that is not plain memory"
        if self.why_not:
            return
        given = set(map(_memory, inputs))
        new = [x for x in outputs if _memory(x) not in given]
        writes = operation._schema.is_mutable
        if outputs and not new and not writes:
            return  # a view
        node = self._graph.call_function(operation, *self._arguments((args, kwargs)))
        if writes:
            self._use_objects(inputs)
        if writes or torch.Tag.nondeterministic_seeded in operation.tags:
            self._effects.add(node)
        if isinstance(result, Tensor):
            self._define(new, [node])
        else:
            places = [i for i, x in enumerate(result or ()) if isinstance(x, Tensor) and _memory(x) not in given]
            if len(places) != len(new):
                self.why_not = f"{operation} returns tensors in lists of lists"
                return
            self._define(new, [self._graph.call_function(_item, (node, i)) for i in places])

    def add_launch(self, launch: Callable[[tuple], None], call: tuple) -> None:
        """Add a kernel's launch by `fastgan_kernels`."""
        if self.why_not is None:
            self._add_object(launch, self._arguments(call))

    def add_call(self, function: Callable[[], Any]) -> None:
        """Add a call of a Python function."""
        if self.why_not is None:
            self._add_object(function)

    def _add_object(self, function: Callable, *args: Any) -> None:
        known = next((name for name, constant in self._constants.items() if constant is function), None)
        node = self._graph.get_attr(known or self._constant(function))
        self._effects.add(self._graph.call_method("__call__", (node, *args)))

    def _constant(self, value: Any) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants[name] = value
        return name

    def _arguments(self, values: Any) -> Any:
        return tree_map_only(Tensor, self._node, values)

    def _define(self, tensors: list[Tensor], nodes: list[Node]) -> None:
        """The nodes compute these tensors."""
        for x, node in zip(tensors, nodes, strict=False):
            self._keep(x)
            self._nodes[_key(x)] = self._made[_memory(x)] = node

    def _keep(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        self._storages.setdefault(storage._cdata, StorageWeakRef(storage))

    def _node(self, x: Tensor) -> Node:
        """The node of a tensor that is read."""
        key = _key(x)
        if key not in self._nodes:
            made = self._made.get(_memory(x))
            if made is None:
                self._keep(x)
                self._nodes[key] = self._graph.get_attr(self._constant(x))
            else:
                view = made, tuple(x.shape), x.stride(), x.storage_offset()
                self._nodes[key] = self._graph.call_function(torch.as_strided, view)
        return self._nodes[key]

    def _use_objects(self, written: list[Tensor]) -> None:
        """Let the graph write by these objects, whose versions then change. Other objects of the memory may be views
        that were made below autograd, with a version of their own."""
        for x in written:
            node = self._nodes[_key(x)]
            if node.op == "get_attr":
                self._constants[str(node.target)] = x

    def finished(self) -> Callable[[], None]:
        """A function that runs the graph."""
        self._graph.output(None)
        self._graph.eliminate_dead_code(lambda node: node.op == "output" or node in self._effects)
        run = GraphModule(self._constants, self._graph).forward

        def replay() -> None:
            with torch.inference_mode():
                run()

        return replay


def _item(values: tuple | list, i: int) -> Any:
    return values[i]


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _memory(x: Tensor) -> tuple:
    return x.untyped_storage()._cdata, x.dtype


def _key(x: Tensor) -> tuple:
    return *_memory(x), x.shape, x.stride(), x.storage_offset()
