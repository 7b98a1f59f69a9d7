"""Commands in processes of their own, forked from one that has imported torch and fastgan: they start in milliseconds.

Python's forkserver makes them. Its memory is that of freshly imported modules, without threads and without anything
that tests have changed in this process.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from importlib import import_module

import torch

LONG = 300.0  # seconds that nothing here takes, on a busy machine either
PRELOADED = ("cli.train", "training.loop", "training.initial", "studies", "metrics.reference", "data.prepare")

_context = multiprocessing.get_context("forkserver")
_stores = []
_context.set_forkserver_preload(["torch._dynamo", "tyro", *(f"fastgan.{name}" for name in PRELOADED)])


class Process:
    """A function call in a process of its own, with the part of `subprocess.Popen`'s interface that tests use.

    Attributes:
        pid: number of the process.
        stdout: text of what the process writes to stdout and stderr.
        returncode: exit status, or minus the number of the signal that killed it; None while it runs.
    """

    def __init__(self, function, *arguments, environment=None):
        reading, writing = _context.Pipe(duplex=False)
        given = dict(os.environ if environment is None else environment)
        self._process = _context.Process(target=_call, args=(writing, given, function, arguments))
        self._process.start()
        self.pid = self._process.pid
        atexit.register(self.kill)  # of a test that has failed; multiprocessing waits for processes at exit
        writing.close()
        self.stdout = os.fdopen(os.dup(reading.fileno()), encoding="utf-8", errors="replace")
        reading.close()

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def wait(self, timeout=LONG):
        self._process.join(timeout)
        assert self.returncode is not None, f"process {self.pid} still runs after {timeout} seconds"
        atexit.unregister(self.kill)
        return self.returncode

    def communicate(self, timeout=LONG):
        """Waits for the process; returns the rest of its output, and None, like Popen."""
        watchdog = threading.Timer(timeout, self.kill)
        watchdog.start()
        with self.stdout:
            output = self.stdout.read()
        self.wait(timeout)
        assert watchdog.is_alive(), f"process {self.pid} was killed after {timeout} seconds; its output:\n{output}"
        watchdog.cancel()
        return output, None

    def send_signal(self, signum):
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _call(output, environment, function, arguments):
    os.environ.clear()
    os.environ.update(environment)
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    # A script's background job ignores Ctrl-C, a job under nohup SIGHUP, and so do their children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    function(*arguments)


def _command(argv, code, module):
    sys.argv = ["-c", *argv]
    exec(code, {"__name__": "__main__"})
    sys.exit(import_module(f"fastgan.cli.{module}").main(argv))


def start(argv: list[str], code: str = "", module: str = "train", **environment: str) -> Process:
    """Start fastgan.train, or another of the command lines, after `code` in the same process.

    environment: variables that differ from this process's.
    """
    return Process(_command, argv, code, module, environment=os.environ | environment)


def start_ranks(count: int, argv: list[str], code: str = "", module: str = "train") -> list[Process]:
    """Start the processes of a command with the environment that torchrun gives them."""
    return [start(argv, code, module, **environment) for environment in rank_environments(count)]


def rank_environments(count: int) -> list[dict[str, str]]:
    """Variables of torchrun's processes on one machine. This process has the store by which they find each other, so
    its port is taken before they start."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _stores.append(store)
    shared = {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def wait_for(condition, process: Process, seconds: float = LONG) -> None:
    """Wait until `condition()` is true; fails with the process's output if it ends, or time passes, before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)
