"""Layers and operations of a foreign code base, replaced in place by fastgan's; what was replaced can be undone.

    fastgan.patch(model)          the layers of one model: known by their form, and by what they compute
    fastgan.patch_ops(module)     functions of a module that was imported: `torch_utils.ops.bias_act` and the like

A layer that is replaced stays the object that it was: it gets a subclass of its class whose `forward` is built on
`fastgan.ops` (`fastgan.patching.instances`). Parameters, buffers and their names are not touched. What is known stands
in two tables, `fastgan.patching.modules` and `fastgan.patching.functions`; before anything is replaced, both versions
are run on small random inputs and compared in value and in first and second gradients (`fastgan.patching.probe`).
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import nn

from fastgan.errors import UserError
from fastgan.patching import functions, instances, modules, probe
from fastgan.patching.known import NOTHING_TO_FUSE, Known, why_no_kernel
from fastgan.patching.report import Patched, Replaced

__all__ = ["Patched", "Replaced", "patch", "patch_ops"]


def patch(model: nn.Module) -> Patched:
    """Replaces the layers of a model that fastgan knows and has fused.

    Args:
        model: any module; it is changed in place, and no other object of the same classes is.

    Returns:
        What was replaced, what was left and why. `print` shows it; `undo()` or the end of a `with` block puts
        everything back.

    Raises:
        UserError: `model` is not a module, or is compiled already.

    Outputs, and first and second gradients, are the same up to rounding. Parameters stay the same objects, so
    optimizers, checkpoints and copies made by `copy.deepcopy` go on as before. Nothing is changed if it raises.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"fastgan.patch takes a torch.nn.Module, not a {type(model).__name__}")
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            what = f"its part '{name}'" if name else "the model"
            raise UserError(f"fastgan.patch: {what} is compiled already; patch it first, then torch.compile it")
    report, callers = Patched(), functions.Callers()
    classes: list[tuple[nn.Module, type]] = []
    verdicts: dict[tuple, str | Known] = {}  # of layers of one form, one is tried
    fused: set[int] = set()  # parts that a layer that was replaced computes itself
    for name, module in model.named_modules():
        candidates = [known for known in modules.KNOWN if known.recognises(module)]
        if instances.is_patched(module):
            report.left[name] = f"{type(module).__name__}: was patched already"
        elif isinstance(module, torch.jit.ScriptModule):
            report.left[name] = f"{type(module).__name__}: is a compiled script"
        elif not candidates:
            if id(module) not in fused:
                report.note_unknown(module)
                callers.note(module)
        else:
            verdict = _chosen(module, candidates, verdicts)
            if isinstance(verdict, str):
                report.left[name] = f"{type(module).__name__}: {verdict}"
                if verdict != NOTHING_TO_FUSE:
                    callers.note(module)
            else:
                classes.append((module, instances.patched_class(type(module), verdict.forward)))
                by, pairs = " and ".join(verdict.operations(module)), len(verdict.pairs(module))
                report.replaced[name] = Replaced(type(module).__name__, by, pairs)
                fused.update(map(id, verdict.parts(module)))
                if reason := verdict.beside(module):
                    report.left[name] = f"{type(module).__name__}, in part: {reason}"
    report.notes += callers.notes()
    for module, patched in classes:
        report.restores.append(instances.change(module, patched))
    return report


def patch_ops(*modules: ModuleType) -> Patched:
    """Replaces functions that fastgan knows in modules that were imported, for everyone who calls them there.

        from torch_utils.ops import bias_act, upfirdn2d
        fastgan.patch_ops(bias_act, upfirdn2d)

    This is apart from `patch` because it changes a module, and so every model that uses it. Functions are found by name
    and parameters. The official code makes a module of the source text in a pickle, and networks loaded from there call
    the functions of that one: in such modules the same functions are replaced as in those given. Code that imported one
    by name (`from op import upfirdn2d`) has a name of its own for it: the report says where; pass that module as well.

    Returns:
        As `patch`.

    Raises:
        UserError: there is no argument, one is not a module, or there is no function in it that is known.

    What fastgan has no kernel for (an activation, another dimension), and calls with `impl="ref"`, go to the original.
    """
    if not modules:
        raise UserError(
            "fastgan.patch_ops() was given nothing: give the modules whose functions are called, such as "
            "torch_utils.ops.bias_act, torch_utils.ops.upfirdn2d and training.networks"
        )
    report = Patched()
    replacements: list[tuple[ModuleType, str, Callable]] = []
    sought: set[str] = set()
    for module in modules:
        if not isinstance(module, ModuleType):
            raise UserError(
                f"fastgan.patch_ops takes modules such as torch_utils.ops.bias_act, not a {type(module).__name__}"
            )
        found = functions.names_in(module)
        if not found:
            names = ", ".join(sorted({known.name for known in functions.KNOWN}))
            raise UserError(f"fastgan.patch_ops: {module.__name__} has none of the functions that are known: {names}")
        sought |= found
    elsewhere = [module for module in functions.modules_of_pickles() if module not in modules]
    for module in [*modules, *elsewhere]:
        for name in sorted(functions.names_in(module) & sought):
            original = getattr(module, name)
            verdict = functions.replacement(original, name)
            if isinstance(verdict, str):
                report.left[f"{module.__name__}.{name}"] = verdict
            else:
                replacements.append((module, name, verdict))
                report.replaced[f"{module.__name__}.{name}"] = Replaced(name, functions.operation(name))
    originals = {id(getattr(module, name)): name for module, name, _ in replacements}
    for holder, name in functions.other_holders(originals, [*modules, *elsewhere]):
        report.left[f"{holder.__name__}.{name}"] = "is the same function, imported by name: pass this module as well"
    for module, name, replacement in replacements:
        report.restores.append(functions.change(module, name, replacement))
    report.notes.append(
        "not covered: modules that are imported and networks that are loaded from a pickle from now on: call patch_ops "
        "again after that"
    )
    return report


def _chosen(module: nn.Module, candidates: list[Known], verdicts: dict) -> str | Known:
    """What replaces the module, or why nothing does."""
    reason = instances.why_not(module)
    if reason is not None:
        return reason
    unlike = [known.why_not(module) for known in candidates]  # may look at values, which are no part of the form
    fitting = [known for known, reason in zip(candidates, unlike, strict=True) if reason is None]
    if not fitting:
        return "; ".join(dict.fromkeys(unlike))
    form = probe.form(module)
    key = None if form is None else (form, *fitting)
    if key in verdicts:
        return verdicts[key]
    for known in fitting:
        verdict = _why_not(module, known) or known
        if isinstance(verdict, Known):
            break
    if key is not None:
        verdicts[key] = verdict
    return verdict


def _why_not(module: nn.Module, known: Known) -> str | None:
    reason = instances.why_not_called_so(module, known.forward) or why_no_kernel(known, module)
    for part in known.tried(module) if reason is None else ():
        reason = reason or instances.why_not_through(part, known.bypassed(part)) or probe.why_unlike(part, known)
    return reason
