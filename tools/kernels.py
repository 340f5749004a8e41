"""Run a notebook in a kernel of its own, shielded from the user's settings, that never outlives its runner."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress

from nbclient import NotebookClient
from traitlets.config import Config

SOCKET_LIMIT = 90  # bytes; longer paths are no socket addresses on some systems

# Reads process groups from its input, each a second time when it has ended, and kills the rest when the input ends.
GUARD = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    groups ^= {int(line)}
for group in groups:
    try:
        getattr(os, "killpg", os.kill)(group, getattr(signal, "SIGKILL", signal.SIGTERM))
    except OSError:
        pass
"""


class Interrupted(Exception):
    """The runner is ending: no other kernel may start working."""


class Guard:
    """A process that kills what is left of all kernels, workers included, however this process ends."""

    def __enter__(self):
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", GUARD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the runner's group does not reach it
        )
        return self

    def __exit__(self, *_):
        self.close()

    def toggle(self, group):
        """Tell of a process group that has started, and again when it has ended."""
        with self._lock:
            if self._process.stdin.closed:
                raise Interrupted("interrupted")
            self._process.stdin.write(f"{group}\n".encode())
            self._process.stdin.flush()

    def close(self):
        """Kill all kernels that have started and not ended; no other one may start."""
        with self._lock:
            self._process.stdin.close()
        self._process.wait()


def kill_group(group):
    """Kill a kernel's process group, which outlives it where a worker of its has not noticed."""
    if hasattr(os, "killpg"):  # not on Windows
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def execute(notebook, folder, limit, environment, guard, on_cell=None):
    """Run all cells of a notebook in a fresh kernel, in place.

    The kernel talks over a socket file where it can, not over TCP ports that other kernels race for. It sees
    neither the user's matplotlibrc nor the start-up files of IPython.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
    folder : path-like
        Where the cells run.
    limit : int
        Seconds a cell may run.
    environment : dict of str to str
        Added to this process's.
    guard : Guard
    on_cell : callable, optional
        Called without arguments after each cell.

    Raises
    ------
    nbclient.exceptions.CellExecutionError, CellTimeoutError, DeadKernelError, Interrupted
    """
    groups = []

    def started(**_):
        groups.append(client.km.provisioner.pid)  # a kernel leads a process group of its own
        guard.toggle(groups[0])

    def executed(**_):
        if on_cell:
            on_cell()

    with tempfile.TemporaryDirectory(prefix="nb", ignore_cleanup_errors=True) as private:
        can_use_files = os.name == "posix" and len(os.fsencode(private)) < SOCKET_LIMIT
        client = NotebookClient(
            notebook,
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{private}/k"}} if can_use_files else {}),
            kernel_name="python3",
            timeout=limit,
            resources={"metadata": {"path": str(folder)}},
            record_timing=False,
            coalesce_streams=True,
            on_notebook_start=started,
            on_cell_executed=executed,
        )
        shield = {
            "IPYTHONDIR": os.path.join(private, "ipython"),
            "MATPLOTLIBRC": os.devnull,
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "PYTHONUTF8": "1",
        }
        try:
            asyncio.run(client.async_execute(env={**os.environ, **shield, **environment}))
        finally:
            for group in groups:
                kill_group(group)
                with suppress(Interrupted):
                    guard.toggle(group)
