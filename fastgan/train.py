"""`python -m fastgan.train`: train a GAN, or go on with a training.

Exit status: 0 when done, 2 for a mistake in options or files, 130 after Ctrl-C and 143 after SIGTERM (saved then).
"""

from __future__ import annotations

import sys

from fastgan.errors import UserError, command_line
from fastgan.training import config as configuration
from fastgan.training import memory, process


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: this process's own) and return the exit status."""
    given = configuration.parse(argv)  # before torch is imported, so that --help is quick
    process.keep_freed_memory()
    process.let_idle_threads_sleep_soon()
    from fastgan.training import loop

    if given.output.resume is None:
        with memory.shortage_is_a_mistake("make --batch smaller, or --channel-base and --channel-max, or --resolution"):
            return loop.train(configuration.resolve(given))
    with memory.shortage_is_a_mistake(
        "a resumed run needs what it needed before: free some, or choose another --device"
    ):
        return loop.train(*_resumed(given, argv))


def _resumed(given, argv):
    """The saved configuration with the options of `argv` over it, and the header of the checkpoint to go on from."""
    from fastgan.training import checkpoint
    from fastgan.training.files import remove_unfinished

    if given.output.out is not None:
        raise UserError("--out and --resume exclude each other: a resumed run stays in its folder")
    header = checkpoint.read_header(given.output.resume)
    saved = header.config
    config = configuration.parse(argv, default=saved)
    for name, (before, after) in configuration.changes(saved, config).items():
        if name in configuration.FIXED_ON_RESUME:
            raise UserError(
                f"{configuration.flag(name)} {after}: {header.path} was trained with {before}; leave the option out"
            )
    config = configuration.resolve(config)
    for name, (before, after) in configuration.changes(saved, config).items():
        print(f"note: {configuration.flag(name)} {after} from here on, {before} before")
    if config.training.images <= header.images - config.training.batch:
        raise UserError(f"--images {config.training.images}: {header.path} has seen {header.images} already; give more")
    remove_unfinished(header.path.parent)
    return config, header


if __name__ == "__main__":
    sys.exit(main())
