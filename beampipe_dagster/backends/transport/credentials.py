"""Who we are on a login node: keys, passphrases and known hosts, from slots of a directory or from the environment.

A slot is a directory ``<root>/<slot>/`` with ``private_key`` (or ``slurm_key``), and where they are needed
``passphrase`` (or ``passcode``), ``known_hosts`` (else the root's) and ``proxy_jump`` (``user@host:port``). The
root is ``BEAMPIPE_SSH_CREDENTIALS_DIR``, else ``/run/beampipe/ssh`` where that exists, else
``~/.config/beampipe/credentials``. Variables overrule files: ``SLURM_SSH_PRIVATE_KEY_PATH`` and the like, for a slot
with ``_<SLOT>`` after them. A slot that is named never falls back to anything of no slot.
"""

from __future__ import annotations

import importlib.util
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import asyncssh

from beampipe_dagster.backends.transport.known_hosts import KnownHosts
from beampipe_dagster.config.profile import SAFE_NAME
from beampipe_dagster.errors import ConfigError, Retry

KEY_NAMES: Final = ("private_key", "slurm_key")
PASSPHRASE_NAMES: Final = ("passphrase", "passcode")
_SYSTEM: Final = Path("/run/beampipe/ssh")
_LIMIT: Final = 1_000_000
_ACL: Final = "system.posix_acl_access"
_ACL_HEADER: Final = 4
_ACL_ENTRY: Final = 8
_ACL_GROUP_OBJ: Final = 0x04
_ACL_GROUP: Final = 0x08
_JUMP: Final = re.compile(
    r"(?:(?P<user>[\w.-]{1,64})@)?(?P<host>[A-Za-z0-9.:-]{1,253}?)(?::(?P<port>\d{1,5}))?"
)
_TRUE: Final = frozenset({"true", "1", "yes", "y", "on"})


@dataclass(frozen=True, slots=True)
class Jump:
    """A host that the way leads through; ``user`` as at the target when ``None``."""

    host: str
    port: int = 22
    user: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What a connection is made with. Neither key nor passphrase is in the ``repr``.

    Attributes
    ----------
    slot
        Its name; ``None`` for the one of no slot.
    key
        The private key, decrypted; ``None`` when an agent signs.
    known_hosts
        The host keys that are believed.
    agent_path
        Socket of an agent that is asked to sign.
    """

    slot: str | None
    key: asyncssh.SSHKey | None = field(repr=False)
    known_hosts: KnownHosts = field(repr=False)
    jump: Jump | None = None
    agent_path: str | None = None

    @property
    def fingerprint(self) -> str | None:
        """``SHA256:...`` of the key, as ``ssh-keygen -l`` shows it."""
        return None if self.key is None else self.key.get_fingerprint()


class CredentialStore:
    """Finds and checks credentials, each time anew: a key that was changed is the next connection's.

    Parameters
    ----------
    environ
        The process's variables.
    """

    def __init__(self, *, environ: Mapping[str, str] | None = None) -> None:
        self._env = dict(os.environ if environ is None else environ)
        self.production = self._env.get("BEAMPIPE_ENV", "").strip().lower() in {"production", "prod"}

    @property
    def root(self) -> Path:
        """The directory of the slots.

        Raises
        ------
        ConfigError
            ``ssh_credentials_dir_missing``: in production only a directory that was named is taken.
        """
        if given := self._env.get("BEAMPIPE_SSH_CREDENTIALS_DIR", "").strip():
            return Path(given).absolute()
        if _SYSTEM.is_dir():
            return _SYSTEM
        allowed = self._env.get("BEAMPIPE_SLURM_SSH_ALLOW_HOME_FALLBACK", "").strip().lower() in _TRUE
        if self.production and not allowed:
            raise _unusable(
                "no directory of SSH credentials is named, and production takes none from a home directory",
                "ssh_credentials_dir_missing",
                "set BEAMPIPE_SSH_CREDENTIALS_DIR, or make /run/beampipe/ssh",
            )
        return Path(self._env.get("HOME") or Path.home()) / ".config" / "beampipe" / "credentials"

    def slots(self) -> list[str]:
        """The names of the slots, sorted."""
        root = self.root
        if not root.is_dir():
            return []
        return sorted(
            item.name for item in root.iterdir() if item.is_dir() and SAFE_NAME.fullmatch(item.name)
        )

    def load(self, slot: str | None) -> Credential:
        """A credential, checked.

        Raises
        ------
        ConfigError
            ``ssh_credential_invalid``, ``ssh_credential_missing``, ``ssh_credential_exposed`` (mode or owner),
            ``ssh_passphrase_wrong``, ``ssh_known_hosts_invalid``. Nothing was asked of any host.
        """
        if slot is not None and (not SAFE_NAME.fullmatch(slot) or ".." in slot):
            raise _unusable(
                f"{slot!r} is no name of a credential slot",
                "ssh_credential_invalid",
                "1 to 50 of A-Z a-z 0-9 . _ -, without two dots in a row",
            )
        key = self._key(slot)
        agent = None if key else self._env.get("SSH_AUTH_SOCK") if self._agent_allowed() else None
        if key is None and agent is None:
            raise _unusable(
                f"there is no private key for {_name(slot)}",
                "ssh_credential_missing",
                f"make one: beampipe slurm credentials init {slot or 'NAME'}, or import one that there is",
            )
        return Credential(
            slot=slot, key=key, known_hosts=self._known_hosts(slot), jump=self._jump(slot), agent_path=agent
        )

    def _agent_allowed(self) -> bool:
        return self._env.get("BEAMPIPE_SSH_AGENT", "").strip().lower() in _TRUE

    def _key(self, slot: str | None) -> asyncssh.SSHKey | None:
        inline = self._variable("SLURM_SSH_PRIVATE_KEY", slot)
        if inline and self.production:
            raise _unusable(
                f"{_variable('SLURM_SSH_PRIVATE_KEY', slot)} holds a key, which production does not take",
                "ssh_credential_exposed",
                "put the key into a file of the credentials directory",
            )
        path = self._path("SLURM_SSH_PRIVATE_KEY", slot) or self._in_slot(slot, KEY_NAMES)
        if path is None and not inline:
            return None
        data = self._secret_file(path) if path else str(inline).replace("\\n", "\n").encode()
        place = str(path or _variable("SLURM_SSH_PRIVATE_KEY", slot))
        passphrase = self._passphrase(slot)
        if passphrase and b"BEGIN OPENSSH" in data and importlib.util.find_spec("bcrypt") is None:
            raise _unusable(
                f"the private key {place} has a passphrase in OpenSSH's form, which needs the package bcrypt",
                "ssh_passphrase_unsupported",
                "install bcrypt, or change the key's form: ssh-keygen -p -m PKCS8 -f KEY",
            )
        try:
            return asyncssh.import_private_key(data, passphrase)
        except asyncssh.KeyEncryptionError as error:
            raise _unusable(
                f"the passphrase does not open the key {place}", "ssh_passphrase_wrong", _LOCKED_HINT
            ) from error
        except (asyncssh.KeyImportError, ValueError) as error:
            locked = b"ENCRYPTED" in data or "passphrase" in str(error).lower()
            code = "ssh_passphrase_wrong" if locked else "ssh_credential_invalid"
            hint = _LOCKED_HINT if locked else "a key in OpenSSH's or PEM's form is needed"
            what = "needs a passphrase" if locked and not passphrase else "cannot be read"
            raise _unusable(f"the private key {place} {what}", code, hint) from error

    def _passphrase(self, slot: str | None) -> str | None:
        for name in ("PASSPHRASE", "PASSCODE"):
            variable = f"SLURM_SSH_PRIVATE_KEY_{name}"
            if text := self._variable(variable, slot):
                return text.rstrip("\r\n")
            if file := self._variable(f"{variable}_FILE", slot):
                return _text(self._secret_file(Path(file)), file).rstrip("\r\n")
        path = self._in_slot(slot, PASSPHRASE_NAMES)
        return _text(self._secret_file(path), str(path)).rstrip("\r\n") if path else None

    def _known_hosts(self, slot: str | None) -> KnownHosts:
        path = self._path("SLURM_SSH_KNOWN_HOSTS", slot, bare=True) or self._in_slot(slot, ("known_hosts",))
        path = path or next((p for p in (self.root / "known_hosts",) if p.is_file()), None)
        if path is None:
            raise _unusable(
                f"no host is known to {_name(slot)}: there is no known_hosts",
                "ssh_known_hosts_missing",
                "put the login node's line, compared with what the site publishes, into known_hosts of the slot",
            )
        self._check(path, secret=False)
        return KnownHosts.parse(_text(_read(path), str(path)), name=str(path))

    def _jump(self, slot: str | None) -> Jump | None:
        path = self._in_slot(slot, ("proxy_jump",))
        if path is None:
            return None
        self._check(path, secret=False)
        match = _JUMP.fullmatch(_text(_read(path), str(path)).strip())
        if match is None or not 0 < int(match["port"] or 22) < 65_536:  # ports
            raise _unusable(
                f"{path} is not [user@]host[:port]", "ssh_credential_invalid", "give one jump host"
            )
        return Jump(match["host"], int(match["port"] or 22), match["user"])

    def _in_slot(self, slot: str | None, names: tuple[str, ...]) -> Path | None:
        if slot is None:
            return None
        return next((p for name in names if (p := self.root / slot / name).exists() or p.is_symlink()), None)

    def _path(self, name: str, slot: str | None, *, bare: bool = False) -> Path | None:
        kinds = ("_PATH", "_FILE", "") if bare else ("_PATH", "_FILE")
        found = (self._variable(f"{name}{kind}", slot) for kind in kinds)
        return next((Path(text).absolute() for text in found if text), None)

    def _variable(self, name: str, slot: str | None) -> str | None:
        text = self._env.get(_variable(name, slot), "")
        return text if text.strip() else None

    def _secret_file(self, path: Path) -> bytes:
        self._check(path, secret=True)
        return _read(path)

    def _check(self, path: Path, *, secret: bool) -> None:
        """Refuse what others may read (secrets) or change."""
        try:
            link, found = path.is_symlink(), path.stat()
        except OSError as error:
            raise _unreadable(path, error) from error
        if self.production and link:
            raise _unusable(
                f"{path} is a symbolic link, which production does not take",
                "ssh_credential_exposed",
                "put the file itself there",
            )
        if found.st_uid not in {os.geteuid(), 0}:
            raise _unusable(
                f"{path} belongs to user {found.st_uid}, neither to this process's user nor to root",
                "ssh_credential_exposed",
                f"chown it: chown {os.geteuid()} {path}",
            )
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o077 and secret and not (mode & 0o007 == 0 and _only_named_users(path)):
            raise _unusable(
                f"{path} may be read by others (mode {mode:04o})",
                "ssh_credential_exposed",
                f"chmod 600 {path}",
            )
        if mode & 0o022 and not secret:
            raise _unusable(
                f"{path} may be changed by others (mode {mode:04o})",
                "ssh_credential_exposed",
                f"chmod 644 {path}",
            )


_LOCKED_HINT: Final = (  # says where it goes
    "put it into the file passphrase of the slot (mode 600), or into SLURM_SSH_PRIVATE_KEY_PASSPHRASE_FILE"
)


def _only_named_users(path: Path) -> bool:
    """Whether the mode's group bits are the mask of an access list that lets in named users and no group."""
    try:
        data = os.getxattr(path, _ACL)
    except (OSError, AttributeError):
        return False
    groups = [
        int.from_bytes(data[at + 2 : at + 4], "little")
        for at in range(_ACL_HEADER, len(data) - _ACL_ENTRY + 1, _ACL_ENTRY)
        if int.from_bytes(data[at : at + 2], "little") in {_ACL_GROUP_OBJ, _ACL_GROUP}
    ]
    return bool(groups) and not any(groups)


def _variable(name: str, slot: str | None) -> str:
    return name if slot is None else f"{name}_{re.sub('[^A-Za-z0-9]', '_', slot).upper()}"


def _name(slot: str | None) -> str:
    return "profiles without ssh_credential" if slot is None else f"the credential slot {slot!r}"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LIMIT)
    except OSError as error:
        raise _unreadable(path, error) from error


def _text(data: bytes, place: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _unusable(f"{place} is no text", "ssh_credential_invalid", "put a text file there") from error


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return _unusable(
        f"{path} cannot be read: {error.strerror}",
        "ssh_credential_missing",
        "the daemon and the code location must be able to read it",
    )


def _unusable(message: str, code: str, hint: str) -> ConfigError:
    return ConfigError(message, code=code, hint=hint, retry=Retry.LATER)
