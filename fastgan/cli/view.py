"""`python -m fastgan.view`: a page in the browser to look at a training and at what its generator draws.

Exit status: 2 for a mistake in options or files, 130 after Ctrl-C, which is how it ends.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from typing import Annotated

import tyro

from fastgan.errors import UserError, command_line, program
from fastgan.options import PathText, parse_options
from fastgan.runs import process

FIRST_PORT, PORTS = 7860, 100  # where a free one is looked for
MOST_WAITING = 500  # drawings; beyond, a page is told to wait. Gradio loses its queue at 2,000 abandoned ones


@dataclass(frozen=True, kw_only=True)
class Options:
    """Look at a training in the browser: images by seed, class and truncation, style mixing, noise, interpolation, and
    the curves and samples of the training, which it follows. Needs the extra "view" of this package."""

    run: Annotated[PathText, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|FILE|URL")]
    """Folder of a training run, a checkpoint file, or a file of the official StyleGAN2 (.pkl) or of
    rosinality's (.pt)."""
    host: str = "127.0.0.1"
    """Address to serve the page at. The default is seen from this machine only; 0.0.0.0 from all others too, without a
    password."""
    port: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=f"(default: the first free from {FIRST_PORT})")
    ] = None
    """Port to serve it at."""
    open: bool = False
    """Also open it in the browser of this machine."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: the first GPU if there is one."""


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: this process's own) and return the exit status."""
    options = parse_options(Options, program("view"), argv)
    serve(options)
    return 0


def serve(options: Options) -> None:
    """Serve the page until Ctrl-C. Raises UserError for a mistake in options or files."""
    port = _free_port(options.host, options.port)
    process.let_idle_threads_sleep_soon()
    page = _require_gradio()

    from fastgan.runs import precision
    from fastgan.view.watching import Run

    run = Run(options.run, precision.choose_device(options.device))
    blocks = page.Page(run).blocks.queue(max_size=MOST_WAITING)
    _, address, _ = blocks.launch(
        server_name=options.host, server_port=port, inbrowser=options.open, prevent_thread_lock=True, quiet=True,
        share=False, ssr_mode=False, pwa=False, enable_monitoring=False, mcp_server=False, footer_links=[],
        theme=page.theme(), css=page.CSS, app_kwargs={"middleware": _middleware(options.host)},
    )  # fmt: skip
    print(f"{run.folder if run.header else run.path} is at {address}   (Ctrl-C ends)")
    print(_who_sees_it(options.host), flush=True)
    blocks.block_thread()


def _require_gradio():
    """The page's module. Raises UserError, with the remedy, if there is no Gradio."""
    # Before it is imported: it reports its use and looks for a newer version of itself otherwise.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        from fastgan.view import page
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in ("gradio", "pandas"):
            raise
        raise UserError('the page needs the extra "view", which is not installed: pip install ".[view]"') from None
    return page


def _free_port(host: str, port: int | None) -> int:
    """`port`, or the first free one. Raises UserError if it is taken, or `host` is no address of this machine."""
    for candidate in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]:
        if not 0 < candidate < 2**16:
            raise UserError(f"--port {candidate}: must be from 1 to {2**16 - 1}")
        try:
            family = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0][0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, candidate))
            return candidate
        except (socket.gaierror, UnicodeError):  # the second for what can be no name
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


def _middleware(host: str) -> list:
    from starlette.middleware import Middleware

    from fastgan.view import guard

    return [Middleware(guard.Guard, names=guard.names(host))]


def _who_sees_it(host: str) -> str:
    from fastgan.view import guard

    if guard.is_loopback(host):
        return "only this machine can reach it"
    return "warning: everyone who reaches this machine over the network can use the page; it has no password"
