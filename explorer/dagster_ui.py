"""Dagster's own web interface on this project, behind the guard.

Its server has no login, answers to any host name, and takes requests from pages of any site. So it gets no socket: its
application answers within this process, behind the same guard as the explorer, WebSockets included. Beside it runs
Dagster's daemon, for schedules and sensors, which listens nowhere.

Open pages hold WebSockets that never end by themselves, so stopping closes them, and waits `PATIENCE` for requests and once
more for processes. What runs started goes on until it is done: they live in the code servers, which end by themselves after it.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

from explorer.guard import Guard, check_address
from explorer.server import listen
from resources.instance import instance
from resources.settings import Settings

MODULE = "assets.definitions"
PATIENCE = 2
"""Seconds that stopping waits for open requests, and then for the daemon and the code servers."""
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process gets when the one that started it is gone."""


def serve(settings: Settings, *, host: str, port: int, token: str | None, said: Callable[[str], None]) -> None:
    """Answer until stopped by SIGINT or SIGTERM. `said` is told the address.

    Raises:
        SettingsError: others could reach the address and there is no token, the address cannot be used, or the
            instance's database cannot be reached.
    """
    import uvicorn
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import ModuleTarget
    from dagster_webserver.app import create_app_from_workspace_process_context
    from dagster_webserver.version import __version__

    check_address(host, token)
    os.environ.update(settings.for_children())
    signal.signal(signal.SIGTERM, _stop)
    with listen(host, port) as listening, ExitStack() as stack:
        opened = stack.enter_context(instance(settings))
        daemon = stack.enter_context(
            child([sys.executable, "-m", "dagster._daemon", "run", "-m", MODULE, "--log-level", "warning"])
        )
        target = ModuleTarget(module_name=MODULE, attribute=None, working_directory=os.getcwd(), location_name=None)  # noqa: PTH109 (as Dagster's own command gives it)
        workspace = WorkspaceProcessContext(opened, target, version=__version__, code_server_log_level="WARNING")
        workspace.__enter__()
        stack.callback(_end, daemon, workspace)
        name = f"[{host.strip('[]')}]" if ":" in host else host
        app = Guard(create_app_from_workspace_process_context(workspace), names=[name], token=token, policy=None)
        said(f"http://{name}:{listening.getsockname()[1]}")
        config = uvicorn.Config(
            app, log_level="critical", server_header=False, lifespan="off", access_log=False,
            timeout_graceful_shutdown=PATIENCE,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listening])


def _stop(_: int, __: FrameType | None) -> None:
    # As Ctrl-C does, so that what was started is ended.
    raise KeyboardInterrupt


@contextmanager
def child(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that never outlives this one, however this one ends."""
    # Read here: nothing may be imported between fork and exec.
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def ends_with_us() -> None:
        # A shell that started us in the background made us deaf to Ctrl-C, and this would be handed down.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    # A session of its own: Ctrl-C in a terminal goes to all processes of one, and we end it ourselves.
    with subprocess.Popen(command, start_new_session=True, preexec_fn=ends_with_us) as started:  # noqa: PLW1509, S603 (one thread yet; every word is ours)
        try:
            yield started
        finally:
            started.kill()


def _end(daemon: subprocess.Popen[bytes], workspace: Any) -> None:
    """Ask daemon and code servers to end, both at once, and wait for them at most `PATIENCE`."""
    daemon.send_signal(signal.SIGINT)
    ending = threading.Thread(target=workspace.__exit__, args=(None, None, None), daemon=True)
    ending.start()
    until = time.monotonic() + PATIENCE
    ending.join(PATIENCE)
    with suppress(subprocess.TimeoutExpired):
        daemon.wait(max(0.0, until - time.monotonic()))
