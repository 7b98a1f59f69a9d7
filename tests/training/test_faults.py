"""Trainings that are killed, signalled, or meet a full disk at any call of a save lose nothing: every folder that they
leave is gone on with, and becomes that of a training which nothing stopped.

`FASTGAN_FAULTS=all` tries every call of whole trainings, and kills at random moments (minutes of a core).
"""

import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from functools import partial

import pytest

from fastgan.cli.train import main
from fastgan.runs import checkpoint
from tests.support import faults
from tests.support.processes import LONG, Process, start
from tests.support.tiny_run import arguments, assert_same_checkpoint, log_lines, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_cache"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif(sys.version_info < (3, 11), reason="pathlib has calls of its own, which are not counted"),
]
ALL = os.environ.get("FASTGAN_FAULTS") == "all"
every = pytest.mark.skipif(not ALL, reason="takes minutes: set FASTGAN_FAULTS=all")
END = 16  # images: four steps, saved after two and at the end
OPTIONS = ["--arch", "mlp", "--images", str(END), "--checkpoint-interval", "8", "--log-interval", "4"]
OPTIONS += ["--grid-interval", "8", "--keep-checkpoints", "2"]
# Exit status after a fault: 0 if all was done before; minus a signal's number before the first step.
STATUSES = {"kill": (0, -9), "SIGTERM": (0, 143, -15), "SIGHUP": (0, 129, -1), "SIGINT": (0, 130, -2)}


@pytest.fixture(scope="module")
def unbroken(folder, tmp_path_factory):
    return train(folder, tmp_path_factory.mktemp("unbroken") / "run", *OPTIONS)


def _from_save(images, fault, argv, run, results):
    """Faults from the save at so many images on, in children of a process that has come so far."""
    save, begun = checkpoint.save, []

    def saving(path, state, *rest):
        if state.images == images and not begun:
            begun.append(True)
            faults.each_fault(fault, run, results)
        save(path, state, *rest)

    checkpoint.save = saving
    faults.run(lambda: main(argv))


_from_the_first_save, _from_the_last_save = partial(_from_save, 0), partial(_from_save, END)


def _before_the_first_save(fault, argv, run, results):
    faults.each_fault(fault, run, results, most=8)
    faults.run(lambda: main(argv))


class Suite:
    """Runs trainings with faults, and goes on with each folder that they leave.

    Attributes:
        counts: faults by kind and exit status.
    """

    def __init__(self, folder, unbroken, where):
        self._folder, self._unbroken, self._where = folder, unbroken, where
        self._ended = {}  # states that were gone on with
        self.counts = Counter()

    def try_each(self, training, fault):
        where = self._where / fault.replace(" ", "-")
        run, results = where / "run", where / "states"
        results.mkdir(parents=True)
        process = Process(training, fault, arguments(self._folder, run, *OPTIONS), run, results)
        output = process.communicate(10 * LONG)[0]
        assert process.returncode == 0, output
        outcomes = faults.read_outcomes(results)
        for outcome in outcomes:
            self.check(fault, outcome.status, outcome.output, results / outcome.state, outcome)
        return [outcome.call for outcome in outcomes]

    def check(self, fault, status, output, state, about):
        """A training that had a fault has said so, and can be gone on with."""
        self.counts[fault, status] += 1
        assert "Traceback" not in output, about
        assert status in STATUSES.get(fault, (0, 2)), about
        assert (status == 2) == ("error: " in output), about
        if status == 0:
            self.is_whole(state, about)
        elif state.name not in self._ended:
            self._ended[state.name] = again = self._where / f"again-{len(self._ended)}"
            shutil.copytree(state, again)
            started = (again / checkpoint.FILE_NAME).exists()
            argv = ["--resume", str(again)] if started else arguments(self._folder, again, *OPTIONS)
            assert main(argv) == 0, about
            self.is_whole(again, about, stopped=status > 0)

    def is_whole(self, run, about, stopped=False):
        """stopped: it has saved, and perhaps drawn a grid, where it stopped before."""
        names, expected = ({path.name for path in folder.iterdir()} for folder in (run, self._unbroken))
        different = {name for name in names ^ expected if not stopped or not re.match(r"(grid|checkpoint)-\d+\.", name)}
        assert not different, about
        assert log_lines(run) == log_lines(self._unbroken), about
        for path in self._unbroken.iterdir():
            if path.name not in names:
                continue
            if path.suffix == ".safetensors":
                assert_same_checkpoint(run, self._unbroken, path.name)
            elif path.suffix == ".png":
                assert path.read_bytes() == (run / path.name).read_bytes(), (path, about)


@pytest.fixture
def suite(folder, unbroken, tmp_path):
    return Suite(folder, unbroken, tmp_path)


@pytest.mark.parametrize("fault", ["kill", "full disk", "SIGTERM"])
def test_a_fault_at_any_call_of_a_save_loses_nothing(fault, suite):
    *calls, last = suite.try_each(_from_the_last_save, fault)
    assert {"open", "write", "fsync", "rename", "remove"} <= {*calls} and last is None


DYING = {  # code that takes the output of a training away, before it starts
    "closed": "for number in (0, 1, 2): os.close(number)\n"
    "for name in ('stdin', 'stdout', 'stderr'): setattr(sys, name, None)",
    "a pipe that nobody reads": "reading, writing = os.pipe()\nos.set_blocking(writing, False)\n"
    "while True:\n    try: os.write(writing, bytes(4096))\n    except BlockingIOError: break\n"
    "os.set_blocking(writing, True)\nfor number in (1, 2): os.dup2(writing, number)",
    "a terminal that has gone": "control, terminal = os.openpty()\nos.close(control)\n"
    "for number in (1, 2): os.dup2(terminal, number)",
}


@pytest.mark.parametrize("output", DYING)
def test_a_training_without_output_ends_as_usual(output, folder, suite, tmp_path):
    quick = "import os, sys\nfrom fastgan import progress\nfrom fastgan.runs import process\n"
    quick += "progress.INTERVAL = 0.0\nprocess.PATIENCE = 0.01\n"  # each step prints
    run = tmp_path / "run"
    assert start(arguments(folder, run, *OPTIONS), quick + DYING[output]).wait() == 0
    suite.is_whole(run, output)


@every
@pytest.mark.parametrize("part", [_before_the_first_save, _from_the_first_save], ids=["before", "after"])
@pytest.mark.parametrize("fault", faults.FAULTS)
def test_a_fault_at_any_call_of_a_training_loses_nothing(fault, part, suite):
    suite.try_each(part, fault)
    print(f"faults at each call of a training: {dict(suite.counts)}; {len(suite._ended)} folders gone on with")


@every
@pytest.mark.parametrize("fault", ["kill", "SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_at_a_random_moment_loses_nothing(fault, suite, tmp_path):
    moments, signum = random.Random(fault), signal.SIGKILL if fault == "kill" else getattr(signal, fault)
    for number in range(int(os.environ.get("FASTGAN_FAULT_MOMENTS", "50"))):
        run = tmp_path / str(number)
        process = start(arguments(suite._folder, run, *OPTIONS))
        output = process.stdout.readline()
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signum)
        output += process.communicate(LONG)[0]
        state = run if run.exists() else tmp_path / "nothing"
        state.mkdir(exist_ok=True)
        suite.check(fault, process.returncode, output, state, (number, output))
    print(f"signals at random moments: {dict(suite.counts)}; {len(suite._ended)} folders gone on with")
