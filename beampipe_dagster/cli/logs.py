"""Log lines of commands: on stderr, since stdout belongs to what was asked for.

The only lines that come from libraries are those about requests to archives that are tried again.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from stamina.instrumentation import RetryHook, RetryHookFactory
    from structlog.typing import Processor


def to_stderr(*, as_json: bool) -> None:
    """Send log lines to stderr from now on.

    Parameters
    ----------
    as_json
        Write each as a JSON document of one line instead of for people to read.
    """
    from stamina.instrumentation import (  # noqa: PLC0415  # start-up time
        RetryHookFactory,
        StructlogOnRetryHook,
        set_on_retry_hooks,
    )

    def hook() -> RetryHook:
        # Called at the first retry: structlog takes a tenth of a second to import, and retries are rare.
        _configure(as_json=as_json)
        return StructlogOnRetryHook.hook_factory()

    hooks: Final[list[RetryHook | RetryHookFactory]] = [RetryHookFactory(hook)]
    set_on_retry_hooks(hooks)


def _configure(*, as_json: bool) -> None:
    import structlog  # noqa: PLC0415  # start-up time

    render: Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            render,
        ],
        logger_factory=_on_stderr,
        cache_logger_on_first_use=False,
    )


def _on_stderr(*args: Any) -> Any:  # noqa: ANN401  # structlog's own types
    import structlog  # noqa: PLC0415  # start-up time

    del args
    # Looked up for each line: stderr may be another one by now.
    return structlog.PrintLogger(sys.stderr)
