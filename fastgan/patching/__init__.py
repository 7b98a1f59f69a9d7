"""Replaces layers and functions of other code bases by fastgan's, in place; `undo()` restores the originals.

    fastgan.patch(model)          the layers of one model
    fastgan.patch_ops(module)     functions of an imported module, such as `torch_utils.ops.bias_act`

A replaced layer stays the same object. It gets a subclass of its class whose `forward` is built on `fastgan.ops`
(`fastgan.patching.instances`); parameters, buffers and their names do not change. Two tables list the known layers and
functions: `fastgan.patching.modules` and `fastgan.patching.functions`. Before anything is replaced, original and
replacement run on small random inputs and are compared in value, first and second gradients (`fastgan.patching.probe`).
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
    """Replaces the layers of a model for which fastgan has a fused version.

    Outputs, first and second gradients stay the same up to rounding. Parameters stay the same objects, so optimizers,
    checkpoints and `copy.deepcopy` work as before.

    Args:
        model: any module. It is changed in place; other modules of the same classes are not.

    Returns:
        A report: what was replaced, what was left and why. `print` shows it. `undo()`, or the end of a `with` block,
        restores the originals.

    Raises:
        UserError: `model` is not a module, or is compiled already. The model is then unchanged.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"fastgan.patch takes a torch.nn.Module, not a {type(model).__name__}")
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            what = f"its part '{name}'" if name else "the model"
            raise UserError(f"fastgan.patch: {what} is compiled already; patch it first, then torch.compile it")
    report, callers = Patched(), functions.Callers()
    classes: list[tuple[nn.Module, type]] = []
    verdicts: dict[tuple, str | Known] = {}  # one layer of each configuration is tried
    fused: set[int] = set()  # ids of submodules that a replaced parent computes itself
    for name, module in model.named_modules():
        candidates = [known for known in modules.KNOWN if known.recognises(module)]
        if instances.is_patched(module):
            report.left[name] = f"{type(module).__name__}: is patched already"
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
                if reason := verdict.why_some_left(module):
                    report.left[name] = f"{type(module).__name__}, in part: {reason}"
    report.notes += callers.notes()
    for module, patched in classes:
        report.restores.append(instances.change(module, patched))
    return report


def patch_ops(*modules: ModuleType) -> Patched:
    """Replaces known functions in imported modules, for every caller.

        from torch_utils.ops import bias_act, upfirdn2d
        fastgan.patch_ops(bias_act, upfirdn2d)

    Unlike `patch` this changes a module, and so every model that uses it. Functions are found by name and parameters.
    The official code creates a module from the source text in a pickle; networks from that pickle call the functions
    there, so the same functions are replaced in those modules too. Code that imported a function by name
    (`from op import upfirdn2d`) keeps the original: the report names such modules; pass them as well. Calls without a
    kernel (an unknown activation, another dimension) and calls with `impl="ref"` go to the original.

    Returns:
        A report, as `patch`.

    Raises:
        UserError: no argument, an argument that is not a module, or a module without any known function.
    """
    if not modules:
        raise UserError(
            "fastgan.patch_ops() needs at least one module: give the modules whose functions are called, such as "
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
            raise UserError(f"fastgan.patch_ops: {module.__name__} has none of the known functions: {names}")
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
        report.left[f"{holder.__name__}.{name}"] = "the same function, imported by name: pass this module as well"
    for module, name, replacement in replacements:
        report.restores.append(functions.change(module, name, replacement))
    report.notes.append(
        "modules imported and pickles loaded from now on are not covered: call patch_ops again after that"
    )
    return report


def _chosen(module: nn.Module, candidates: list[Known], verdicts: dict) -> str | Known:
    """Returns the entry that replaces the module, or the reason why none does."""
    reason = instances.why_not(module)
    if reason is not None:
        return reason
    # `why_not` may look at tensor values, so it runs for every module, not once a configuration.
    unlike = [known.why_not(module) for known in candidates]
    fitting = [known for known, reason in zip(candidates, unlike, strict=True) if reason is None]
    if not fitting:
        return "; ".join(dict.fromkeys(unlike))
    key = probe.configuration(module)
    key = None if key is None else (key, *fitting)
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
    reason = instances.why_other_arguments(module, known.forward) or why_no_kernel(known, module)
    for part in known.probed(module) if reason is None else ():
        reason = (
            reason or instances.why_not_submodules(part, known.bypassed(part)) or probe.why_layers_differ(part, known)
        )
    return reason
