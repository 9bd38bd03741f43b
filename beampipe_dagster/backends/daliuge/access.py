"""How DALiuGE's services are reached: the header that lets in, and the authority that certificates are checked by.

DALiuGE itself has neither; both belong to the proxy that a site puts in front of it.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from beampipe_dagster.errors import ConfigError

HEADER: Final = "BEAMPIPE_DALIUGE_AUTH_HEADER"
CA_FILE: Final = "BEAMPIPE_DALIUGE_CA_FILE"

# RFC 9110 section 5.1 for the name (a token); visible ASCII and inner blanks for the value.
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)")


@dataclass(frozen=True, slots=True)
class Access:
    """What every request to a translator or a manager carries.

    Attributes
    ----------
    headers
        Header fields that let in; a secret, and therefore not in the ``repr``.
    ca_file
        Certificates of the authorities to check by, in PEM; the system's when None.
    """

    headers: dict[str, str] = field(default_factory=dict, repr=False)
    ca_file: Path | None = None

    @classmethod
    def of(cls, *, header: str | None = None, ca_file: Path | None = None) -> Self:
        """From a header line like ``Authorization: Bearer ...`` and a file.

        Raises
        ------
        ConfigError
            ``invalid_setting``: the text is no header line; it is not shown, being a secret.
        """
        headers: dict[str, str] = {}
        if header:
            match = _HEADER.fullmatch(header.strip())
            if match is None:
                raise ConfigError(
                    f"{HEADER} is not one header line (its value is not shown)",
                    code="invalid_setting",
                    hint="Write it as NAME: VALUE, for example Authorization: Bearer TOKEN, in one line.",
                    details={"variable": HEADER},
                )
            headers[match[1]] = match[2]
        return cls(headers, ca_file)

    def verification(self, *, verify: bool) -> bool | ssl.SSLContext:
        """How a client checks certificates; ``verify`` False means not at all.

        Raises
        ------
        ConfigError
            ``invalid_setting``: the file cannot be read or holds no certificate.
        """
        if not verify or self.ca_file is None:
            return verify
        try:
            return ssl.create_default_context(cafile=str(self.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{CA_FILE} {self.ca_file} cannot be used: {error.strerror or error}",
                code="invalid_setting",
                hint="Give a readable file of certificates in PEM.",
                details={"variable": CA_FILE, "path": str(self.ca_file)},
            ) from error
