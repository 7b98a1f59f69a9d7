"""`fastgan train`: train a GAN, or resume a run.

Exit status: 0 when done, 2 for a wrong option or file, and 128 plus the signal's number after Ctrl-C (130), SIGTERM
(143), SIGHUP (129, a closed terminal) or SIGUSR1, which save a checkpoint first. A training goes on if nobody reads its
output any more.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path

from fastgan import files
from fastgan.data.detect import count_images
from fastgan.data.urls import has_scheme
from fastgan.errors import UserError, command_line
from fastgan.runs import config as configuration
from fastgan.runs import memory, process
from fastgan.training import configure


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: this process's own) and return the exit status."""
    command = configure.parse_command(argv)  # before torch is imported, so that --help is quick
    process.keep_freed_memory()
    process.let_idle_threads_sleep_soon()
    with process.output_may_end():
        return _train(command, argv)


def _train(command: configure.Command, argv: list[str] | None) -> int:
    from fastgan.training import loop
    from fastgan.training.length import Length

    given = command.config
    resume = _resumable(given.output)
    if resume is None:
        with memory.out_of_memory_is_user_error(
            "make --batch smaller, or --channel-base and --channel-max, or --resolution"
        ):
            networks = None
            if given.training.init_from is not None:
                from fastgan.training import initial

                networks = initial.read(given.training.init_from)
                given = networks.fill_auto(given)
            if command.recipe == "auto":
                given = _recommended(given, command.given)
            return loop.train(configure.resolve(given), initial=networks)
    if command.recipe == "auto" and given.output.resume != "auto":  # the same command may start and resume a run
        raise UserError("--recipe auto: a resumed run keeps its options; leave it out")
    with (
        memory.out_of_memory_is_user_error(
            "a resumed run needs what it needed before: free some, or change the --device"
        ),
        _locked(Path(resume)),
        _whole_checkpoint_offered(),
    ):
        config, header = _resumed(resume, argv, command.given)
        if reason := Length(config.training).why_no_more(header):
            if given.output.resume != "auto":
                raise UserError(reason)
            if process.is_first():
                print(f"{header.path} has seen {header.images:,} images: done")
            return 0
        return loop.train(config, header)


def _recommended(config: configuration.Config, given: Collection[str]) -> configuration.Config:
    """`config` with the options of `--recipe auto`, which are printed."""
    from fastgan.runs import precision
    from fastgan.training import recommended

    machine = recommended.Machine(precision.gpu_memory(config.machine.device) / 1e9, process.count())
    config, lines = recommended.choose(config, given, count_images(config.data.source), machine)
    if process.is_first():
        print(*lines, sep="\n")
    return config


def _resumable(output: configuration.OutputOptions) -> str | None:
    """The run to resume, or None for a new one."""
    from fastgan.runs import checkpoint

    if output.resume == "auto":
        if output.out is None:
            raise UserError("--resume auto: needs the run's folder; give it with --out")
        return output.out if (Path(output.out) / checkpoint.FILE_NAME).exists() else None
    if output.resume is not None and has_scheme(output.resume):
        raise UserError(f"--resume {output.resume}: resumes in a local folder; start a new run with --init-from that")
    if output.resume is not None and output.out is not None:
        raise UserError("--out and --resume exclude each other: a resumed run stays in its folder")
    return output.resume


def _locked(run: Path) -> contextlib.AbstractContextManager:
    """Lock the folder of a run, given by folder or checkpoint, so that no other training writes there."""
    folder = run if run.is_dir() else run.parent
    return files.one_writer(folder) if process.is_first() else contextlib.nullcontext()


@contextlib.contextmanager
def _whole_checkpoint_offered() -> Iterator[None]:
    """Add to the error of a damaged checkpoint how to go on from the newest whole one."""
    from fastgan.runs.checkpoint import DamagedCheckpoint

    try:
        yield
    except DamagedCheckpoint as error:
        raise UserError(f"{error}; go on from there with --resume {error.whole[0]}") from None


def _resumed(run, argv, given):
    """The saved configuration, updated with the options of `argv`, and the header of the checkpoint to resume.

    given: names of these options.
    """
    from fastgan.runs import checkpoint

    header = checkpoint.read_header(run)
    if "data" not in given:
        checkpoint.require_trusted(header)
    saved = header.config
    config = configure.parse(argv, default=saved)
    lengths = {"images", "minutes"} & configuration.changes(saved, config).keys()
    if len(lengths) == 1:  # the one that is given replaces the other
        (other,) = {"images", "minutes"} - lengths
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, **{other: 0}))
    for name, (before, after) in configuration.changes(saved, config).items():
        if name in configure.FIXED_ON_RESUME:
            raise UserError(
                f"{configuration.flag(name)} {after}: {header.path} was trained with {before}; leave the option out"
            )
    config = configure.resolve(config)
    kept, asked = len(saved.training.ema_halflives), len(config.training.ema_halflives)
    if kept != asked:
        raise UserError(
            f"--ema-halflife {config.training.ema_halflife}: {header.path} keeps {kept} EMA{'s' * (kept > 1)}; give as "
            "many numbers, or leave the option out"
        )
    for name, (before, after) in configuration.changes(saved, config).items() if process.is_first() else ():
        print(f"note: {configuration.flag(name)} {after} from here on, {before} before")
    checkpoint.require_networks(header)
    files.remove_unfinished(header.path.parent)
    return config, header
