"""The folder of a run: making it, and removing what a failed first step leaves in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fastgan.distributed import Ranks
from fastgan.errors import UserError
from fastgan.runs import checkpoint, memory
from fastgan.runs.config import FILE_NAME as CONFIG_FILE_NAME
from fastgan.runs.config import Config
from fastgan.runs.log import FILE_NAME as LOG_FILE_NAME
from fastgan.training.log_writer import remove_logs


def new_run_folder(config: Config) -> Path:
    """Make the folder that --out names, or else the next free runs/ARCH-DATA-NNN.

    Raises UserError if the folder holds another run or cannot be made.
    """
    try:
        if config.output.out is not None:
            run = Path(config.output.out)
            if (run / checkpoint.FILE_NAME).exists():
                raise UserError(f"--out {run} holds a run already; go on with --resume {run}, or choose another folder")
            if (run / LOG_FILE_NAME).exists():
                raise UserError(
                    f"--out {run} holds the {LOG_FILE_NAME} of another run; remove it, or choose another folder"
                )
            run.mkdir(parents=True, exist_ok=True)
            return run
        name = f"{config.network.arch}-{Path(config.data.source).stem}"
        for number in range(1000):
            run = Path("runs") / f"{name}-{number:03d}"
            with contextlib.suppress(FileExistsError):
                run.mkdir(parents=True)
                return run
    except OSError as error:
        raise UserError(f"cannot make the folder {run}: {error.strerror}; choose another with --out") from None
    raise UserError(f"there are 1000 runs called runs/{name}-NNN; choose a folder with --out")


@contextlib.contextmanager
def removed_unless_trained(run: Path, state: checkpoint.State, ranks: Ranks) -> Iterator[None]:
    """Remove the run's files if the block fails before the first step is done, so that --out may name the folder again.

    Failures are a lack of memory and UserErrors, such as a log that cannot be written. Files that were in the folder
    before the run stay.
    """
    before = {path.name for path in run.iterdir()} if ranks.is_first else set()
    try:
        yield
    except (MemoryError, RuntimeError, UserError) as error:
        if ranks.is_first and state.step == 0 and (isinstance(error, UserError) or memory.is_out_of_memory(error)):
            for name in (checkpoint.FILE_NAME, CONFIG_FILE_NAME):
                (run / name).unlink(missing_ok=True)
            checkpoint.remove_older(run / checkpoint.FILE_NAME)
            remove_logs(run, before)
            with contextlib.suppress(OSError):  # it has files of someone else
                run.rmdir()
        raise
