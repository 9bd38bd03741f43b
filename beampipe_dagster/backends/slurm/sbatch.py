"""Submitting once: the script around ``sbatch``, its answer, and what sbatch's messages mean.

Under a lock on the login node the script first looks for what an earlier attempt left: a receipt, a job of the
same name, the mark of an attempt. Only then the job is submitted, held; it is released when its receipt is
written, so that a job of which nobody knows never runs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Final

from beampipe_dagster.backends.slurm.frames import PRELUDE, framed, frames
from beampipe_dagster.backends.slurm.lookup import checked_job_name
from beampipe_dagster.backends.slurm.session_files import IMAGE_VARIABLE, STAGING_DIRECTORY, needs_image
from beampipe_dagster.backends.slurm.squeue import SEPARATOR, squeue_line
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.profile import SlurmRemote
from beampipe_dagster.errors import (
    BackendError,
    BackendUnavailableError,
    ConfigError,
    SubmissionUncertainError,
)

_RECEIPT: Final = re.compile(r"([0-9]+)(;[A-Za-z0-9._-]+)?")
_SED: Final = r"'s/^ *\([0-9][0-9]*\)\(;[A-Za-z0-9._-]*\)\{0,1\} *$/\1/p'"
"""The same for the script on the login node, which prints the id."""
_CREATED: Final = "Created job submission script "
_BAD_PATH: Final = re.compile(r"[,:\x00-\x1f\x7f]")
_WRAPPED_LENGTH: Final = 2
_SHOWN: Final = 300


class Refusal(StrEnum):
    """What a failed sbatch means."""

    PERMANENT = "permanent"
    """The same request is refused again."""

    BUSY = "busy"
    """Nothing was submitted; later it may be."""

    AMBIGUOUS = "ambiguous"
    """It may have been submitted."""


# A controller that was slow to answer has often taken the job: these go first.
_AMBIGUOUS: Final = re.compile(
    r"timed out|zero bytes were transmitted|unexpected message|communication (?:connection )?failure"
    r"|connection reset|broken pipe|transport endpoint|receive.*fail|protocol authentication",
    re.IGNORECASE,
)
_BUSY: Final = re.compile(
    r"unable to contact slurm controller|temporarily unable|resource temporarily unavailable|try again"
    r"|job violates accounting|submit limit|too many|maximum job|queue is full|in standby mode|not available now"
    r"|configuration not available|currently (?:down|disabled)|slurmctld .*(?:starting|reconfigur)",
    re.IGNORECASE,
)
_PERMANENT: Final = re.compile(
    r"invalid|can ?not be satisfied|configuration is not available|unable to open (?:file|batch)|unrecognized option"
    r"|does not look like a batch script|script is empty|dos line breaks|too long|permission denied|not permitted"
    r"|requested time limit|more processors requested|no such file|illegal|ambiguous option|expired|not supported"
    r"|command not found",
    re.IGNORECASE,
)


class FoundBy(StrEnum):
    """How the job's id came to be known."""

    SBATCH = "sbatch"
    RECEIPT = "receipt"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that is there.

    Parameters
    ----------
    job
        Its id.
    found_by
        How it came to be known.
    is_released
        Whether it was released; a held job has to be.
    """

    job: str
    found_by: FoundBy
    is_released: bool


def submit_command(
    arguments: Sequence[str],
    *,
    name: str,
    directory: str,
    nonce: str,
    setup: str = "",
    lock_seconds: int = 30,
    seconds: int = 60,
) -> str:
    """The script that submits a job once, for bash.

    Parameters
    ----------
    arguments
        The call of sbatch, from its first word; ``-H`` and ``--comment`` are added.
    name
        The job's name, which no other attempt has.
    directory
        Absolute; holds the lock, the mark of the attempt and the receipt.
    nonce
        Letters and digits that mark the answer.
    setup
        Lines before sbatch, in a shell that ends at the first error.
    lock_seconds, seconds
        Bounds of the wait for the lock, and of sbatch.

    Raises
    ------
    InputError
        ``invalid_job_name``, ``invalid_nonce``.
    """
    checked_job_name(name)
    base = shlex.quote(f"{directory.rstrip('/')}/{name}")
    lock = shlex.quote(f"{directory.rstrip('/')}/.submit.lock")
    line = shlex.join([arguments[0], "-H", f"--comment={name}", *arguments[1:]])
    answer = framed("answer", nonce)

    def say(word: str) -> str:
        return f"bp_say {word}"

    return f"""{PRELUDE}umask 077
bp_rc=0
bp_say() {{ bp_out="$1 $2"
{answer}}}
mkdir -p -- {shlex.quote(directory)} || {{ {say("unusable")}; exit 0; }}
exec 9>>{lock} || {{ {say("unusable")}; exit 0; }}
flock -w {lock_seconds} 9 || {{ {say("locked")}; exit 0; }}
bp_release() {{ timeout -k 2 {seconds} scontrol release "$1" >/dev/null 2>&1 9>&- && echo yes || echo no; }}
if [ -s {base}.receipt ]; then
  bp_id=$(cat {base}.receipt); bp_say receipt "$bp_id $(bp_release "$bp_id")"; exit 0
fi
bp_out=$({squeue_line(name=name)} 2>&1 9>&-); bp_rc=$?
if [ "$bp_rc" -ne 0 ]; then bp_rc=0; bp_say unasked "$bp_out"; exit 0; fi
bp_id=$(printf '%s\\n' "$bp_out" | cut -s -d '{SEPARATOR}' -f 1 | tr '\\n' ' ')
bp_id=${{bp_id% }}
case "$bp_id" in
  '') ;;
  *[!0-9]*) bp_say several "$bp_id"; exit 0 ;;
  *) printf '%s' "$bp_id" >{base}.tmp && mv -f -- {base}.tmp {base}.receipt
     bp_say queue "$bp_id $(bp_release "$bp_id")"; exit 0 ;;
esac
if [ -e {base}.attempt ]; then {say("attempted")}; exit 0; fi
: >{base}.attempt || {{ {say("unusable")}; exit 0; }}
bp_out=$( {{ set -eu
{setup}
timeout -k 5 {seconds} {line} </dev/null; }} 2>&1 9>&-); bp_rc=$?
{framed("sbatch", nonce)}bp_id=$(printf '%s\\n' "$bp_out" | sed -n {_SED})
case "$bp_id" in ''|*[!0-9]*) exit 0 ;; esac
[ "$bp_rc" -eq 0 ] || exit 0
printf '%s' "$bp_id" >{base}.tmp && mv -f -- {base}.tmp {base}.receipt || exit 0
bp_rc=0; bp_say submitted "$bp_id $(bp_release "$bp_id")"
"""


def read_submit(output: str, *, name: str, nonce: str) -> Submitted:
    """The answer to :func:`submit_command`.

    Raises
    ------
    BackendError
        ``sbatch_refused``: the request has to change.
    BackendUnavailableError
        ``scheduler_busy``, ``scheduler_unavailable``, ``submit_locked``: nothing was submitted.
    SubmissionUncertainError
        It may have been submitted: look for the job by its name.
    """
    found = frames(output, nonce)
    sbatch, answer = found.get("sbatch"), found.get("answer")
    word, _, rest = answer.text.strip().partition(" ") if answer is not None else ("", "", "")
    values = rest.split()
    ways = {"receipt": FoundBy.RECEIPT, "queue": FoundBy.QUEUE, "submitted": FoundBy.SBATCH}
    if word in ways and values and _RECEIPT.fullmatch(values[0]):
        return Submitted(values[0], ways[word], values[-1] == "yes")
    if sbatch is not None and sbatch.code != 0:
        raise refused(name, sbatch.code, sbatch.text)
    if sbatch is not None and (job := receipt(sbatch.text)) is not None:
        return Submitted(job, FoundBy.SBATCH, is_released=False)
    raise _without_job(word, rest, name)


def _without_job(word: str, rest: str, name: str) -> BackendError:
    nothing = {
        "locked": ("submit_locked", "another submission holds the lock on the login node"),
        "unusable": ("submit_directory_unusable", "the directory for receipts cannot be written"),
        "unasked": ("scheduler_unavailable", f"the queue could not be asked: {rest[:_SHOWN]}"),
    }
    if word in nothing:
        code, text = nothing[word]
        return BackendUnavailableError(
            f"job {name} was not submitted: {text}", code=code, hint="It is tried again later."
        )
    uncertain = {
        "several": f"there are several jobs named {name}: {rest}",
        "attempted": f"job {name} was attempted before, and left neither a receipt nor a job in the queue",
    }
    return SubmissionUncertainError(
        uncertain.get(word, f"whether job {name} was submitted is not known: the answer is incomplete"),
        hint="It is looked for by its name; never submit it again before that.",
        details={"job_name": name},
    )


def refusal(code: int | None, text: str) -> Refusal:
    """What sbatch's exit code and words mean; whatever is not known is ambiguous."""
    if code in {None, 124, 137, 143} or _AMBIGUOUS.search(text):
        return Refusal.AMBIGUOUS
    if _BUSY.search(text):
        return Refusal.BUSY
    return Refusal.PERMANENT if _PERMANENT.search(text) else Refusal.AMBIGUOUS


def refused(name: str, code: int | None, text: str) -> BackendError:
    """The error for an sbatch that failed."""
    said = text.strip()[-_SHOWN:]
    kind = refusal(code, text)
    if kind is Refusal.AMBIGUOUS:
        return SubmissionUncertainError(
            f"sbatch of {name} ended with {code}, and the job may be there: {said}",
            hint="It is looked for by its name; never submit it again before that.",
            details={"job_name": name},
        )
    if kind is Refusal.BUSY:
        return BackendUnavailableError(
            f"Slurm does not take job {name} now: {said}",
            code="scheduler_busy",
            hint="It is tried again later.",
        )
    return BackendError(
        f"sbatch refused job {name}: {said}",
        code="sbatch_refused",
        hint="Correct the deployment profile: account, partition, resources or paths.",
    )


def receipt(output: str) -> str | None:
    """The job's id in what ``sbatch --parsable`` printed; None unless exactly one line is one."""
    found = [match[1] for line in output.splitlines() if (match := _RECEIPT.fullmatch(line.strip()))]
    return found[0] if len(found) == 1 else None


def job_script_path(output: str) -> str:
    """The job script that ``create_dlg_job`` says that it made.

    Raises
    ------
    BackendError
        ``no_job_script``.
    """
    for line in output.splitlines():
        if line.startswith(_CREATED) and (path := line.removeprefix(_CREATED).strip()):
            return path
    raise BackendError(
        f"create_dlg_job did not say where the job script is: {output[-_SHOWN:]!r}",
        code="no_job_script",
        hint="Run it on the login node; modules, venv and facility of the profile must fit.",
    )


@dataclass(frozen=True, slots=True)
class SessionPaths:
    """A session's directory, and what its job stages into."""

    session: str
    staging: str


def session_paths(job_script: str, dlg_root: str) -> SessionPaths:
    """The directories of a job script, which must lie below ``dlg_root``.

    Raises
    ------
    BackendError
        ``foreign_job_script``.
    """
    path, root = PurePosixPath(job_script), PurePosixPath(dlg_root)
    place = path.parent
    fits = path.is_absolute() and ".." not in path.parts and not _BAD_PATH.search(job_script)
    if not fits or place == root or not place.is_relative_to(root):
        raise BackendError(
            f"the job script {job_script!r} does not lie in a directory below {dlg_root}",
            code="foreign_job_script",
            hint="Correct dlg_root in the deployment profile; paths have no comma, colon or control character.",
        )
    return SessionPaths(str(place), str(place / STAGING_DIRECTORY))


def image_of(slurm: SlurmRemote, environ: Mapping[str, str]) -> str | None:
    """The container image that a profile needs; None when it needs none.

    Raises
    ------
    ConfigError
        ``missing_image``.
    """
    if not needs_image(slurm):
        return None
    image = environ.get(IMAGE_VARIABLE, "").strip()
    if not image:
        raise ConfigError(
            f"environment_setup of the profile mentions {IMAGE_VARIABLE}, which is not set",
            code="missing_image",
            hint=f"Set {IMAGE_VARIABLE} to the image's path on the cluster.",
        )
    return image


def graph_file_name(logical: str) -> str:
    """What DALiuGE calls the partitioned graph of a logical graph's file."""
    base = logical.rpartition("/")[2]
    stem = base.removesuffix(".graph")
    return f"{stem}_pgt.graph" if stem != base else f"{base}.pgt.graph"


def wrapped_graph(graph: JsonValue, name: str) -> JsonValue:
    """A partitioned graph as ``create_dlg_job`` reads it: ``[file name, graph]``."""
    if isinstance(graph, list) and len(graph) == _WRAPPED_LENGTH:
        first, second = graph
        if isinstance(first, str) and isinstance(second, list):
            return graph
    return [name, graph]
