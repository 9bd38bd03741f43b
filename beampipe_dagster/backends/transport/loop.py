"""One event loop, in one daemon thread, in each process: where all SSH connections live.

Callers are synchronous. A process that was forked makes a loop of its own: threads do not survive a fork.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")


class LoopThread:
    """The loop of a process; see :meth:`of_process`."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _made: ClassVar[LoopThread | None] = None

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="ssh-loop", daemon=True).start()

    @classmethod
    def of_process(cls) -> LoopThread:
        """The one of this process, made when it is first asked for."""
        with cls._lock:
            if cls._made is None or cls._made.pid != os.getpid():
                cls._made = cls()
            return cls._made

    def call(self, work: Coroutine[Any, Any, T], *, seconds: float) -> T:
        """Do the work in the loop and wait for it.

        Parameters
        ----------
        seconds
            After which the work is cancelled.

        Raises
        ------
        TimeoutError
            It took longer. What the work itself raises is raised here.
        """
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(seconds)
        except (TimeoutError, FutureTimeoutError):
            future.cancel()
            raise


os.register_at_fork(after_in_child=lambda: setattr(LoopThread, "_lock", threading.Lock()))
