"""`fastgan view`: a page in the browser that shows a run and its generator.

Exit status: 2 for a wrong option or file, 130 after Ctrl-C, which stops it.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastgan.errors import UserError, command_line, program
from fastgan.options import HalfLife, PathText, parse_options
from fastgan.runs import process

FIRST_PORT, PORTS = 7860, 100  # searched for a free port
SESSIONS = 500  # browser tabs whose state is kept


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show a run in the browser: images by seed, class and truncation, style mixing, noise and interpolation, and the
    curves and samples of the training, updated while it runs. Needs the extra "view" of this package."""

    runs: Annotated[tuple[PathText, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN|FOLDER|FILE|URL")]
    """Folder of a training run or of several, a checkpoint file, or a file of the official StyleGAN2 (.pkl) or of
    rosinality's (.pt); local or at a URL. hf://USER/NAME, one of the Hugging Face hub. example:digits, one that comes
    with fastgan. Of several, the page shows one or compares two."""
    ema: HalfLife = None
    """Half-life of the EMA to draw from, in thousands of images, of a training that has kept several."""
    directions: PathText | None = None
    """File of `fastgan directions` whose directions the page has sliders for; by default directions.safetensors in the
    run's folder."""
    host: str = "127.0.0.1"
    """Address to serve the page at. Only this machine can reach the default. At others, such as 0.0.0.0, it is for
    everyone on the network who has the token in the printed address."""
    port: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=f"(default: the first free from {FIRST_PORT})")
    ] = None
    """Port to serve the page at."""
    open: bool = False
    """Open the page in this machine's browser."""
    device: str = "auto"
    """cpu, cuda, or cuda:1 and so on. auto: the first GPU if there is one, else the CPU."""


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: this process's own) and return the exit status."""
    options = parse_options(Options, program("view"), argv)
    if not options.runs:
        raise UserError("give a run, or a folder of runs")
    serve(options)
    return 0


def serve(options: Options) -> None:
    """Serve the page until Ctrl-C. Raises UserError for a wrong option or file."""
    port = _free_port(options.host, options.port)
    process.let_idle_threads_sleep_soon()
    page = _require_gradio()

    from starlette.middleware import Middleware

    from fastgan import editing
    from fastgan.runs import precision
    from fastgan.view import access, projecting, queueing
    from fastgan.view.watching import Runs

    process.keep_freed_memory()
    directions = None if options.directions is None else Path(options.directions)
    if directions is not None:
        editing.load(directions)  # raises if there are none
    runs = Runs(options.runs, precision.choose_device(options.device), options.ema, directions)
    if directions is not None and len(runs.names) == 1 and (problem := runs[runs.first].directions_problem):
        raise UserError(f"--directions {problem}")
    blocks = page.Page(runs).blocks
    queueing.bound(blocks)
    token = "" if access.is_loopback(options.host) else access.new_token()
    own = Middleware(
        access.RequestFilter,
        names=access.host_names(options.host),
        token=token,
        health=functools.partial(queueing.health, blocks),
    )
    blocks.launch(
        server_name=options.host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False,
        pwa=False, enable_monitoring=False, mcp_server=False, footer_links=[],
        state_session_capacity=SESSIONS, theme=page.theme(), css=page.CSS, app_kwargs={"middleware": [own]},
    )  # fmt: skip
    address = access.address(options.host, port, token)
    run, count = runs[runs.first], len(runs.names)
    shown = (run.folder if run.is_run else run.path) if count == 1 else f"{count} runs"
    print(f"{shown} {'is' if count == 1 else 'are'} at {address}   (Ctrl-C stops it)")
    print(access.reachability(options.host), flush=True)
    if options.open:
        webbrowser.open(address)
    try:
        while blocks.is_running:  # `blocks.block_thread()` would end as if Ctrl-C were no interruption
            time.sleep(0.2)
    finally:
        projecting.stop_all()
        blocks.close(verbose=False)


def _require_gradio():
    """The module `page`. Raises UserError, with the remedy, if Gradio is not installed."""
    # Before its import, or Gradio reports its use and looks for a newer version of itself.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_RUN_HISTORY"] = "False"  # or every browser keeps all that was drawn
    try:
        from fastgan.view import page
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in ("gradio", "pandas"):
            raise
        raise UserError('the page needs the extra "view", which is not installed: pip install ".[view]"') from None
    return page


def _free_port(host: str, port: int | None) -> int:
    """`port`, or the first free one. Raises UserError if it is taken, or if `host` is no address of this machine."""
    for candidate in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]:
        if not 0 < candidate < 2**16:
            raise UserError(f"--port {candidate}: must be from 1 to {2**16 - 1}")
        try:
            family = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0][0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, candidate))
            return candidate
        except (socket.gaierror, UnicodeError):  # UnicodeError: not even a possible name
            raise UserError(f"--host {host}: there is no such address") from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UserError(f"--host {host}: no address of this machine; 0.0.0.0 is all of them") from None
            problem = error.strerror
    if port is not None:
        raise UserError(f"--port {port}: {problem}; choose another, or leave it out for the first that is free")
    raise UserError(
        f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free ({problem}); choose one with --port"
    )
