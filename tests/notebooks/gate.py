"""A plugin for nbval (`-p tests.notebooks.gate`): what it must not compare, and kernels that die.

nbval compares every kind of output but PNG and widgets; figures come in more kinds. When a kernel dies it waits for the
cell's whole time, and for that of every cell behind it.
"""

import time
from queue import Empty

import pytest

# Figures, and words that say the same as another kind of the same output.
SKIPPED = (
    "application/vnd.plotly.v1+json",
    "application/vnd.jupyter.widget-state+json",
    "image/svg+xml",
    "text/html",
    "stderr",
)
_ASK = 1.0  # seconds between two questions whether the kernel lives


class KernelDied(RuntimeError):
    """The kernel is gone; there will be no answer."""


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    """Change nbval's classes once, when it is there."""
    from nbval import plugin
    from nbval.kernel import RunningKernel

    if getattr(plugin.IPyNbFile, "gated", False):
        return
    plugin.IPyNbFile.gated = True
    made = plugin.IPyNbFile.__init__

    def init(self, *args, **kwargs):
        made(self, *args, **kwargs)
        self.skip_compare = (*self.skip_compare, *SKIPPED)

    plugin.IPyNbFile.__init__ = init
    RunningKernel.await_reply = _await_reply


def _await_reply(self, msg_id, timeout=None):
    end = None if timeout is None else time.monotonic() + timeout
    while end is None or time.monotonic() < end:
        try:
            reply = self.get_message(stream="shell", timeout=_ASK)
        except Empty:
            if not self.is_alive():
                raise KernelDied("the kernel died in this cell (out of memory, or a crash)") from None
            continue
        if reply["parent_header"].get("msg_id") == msg_id:
            return
    raise Empty
