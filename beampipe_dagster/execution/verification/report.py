"""The publisher's report: what it published, where to, and with which receipt. Pure: nothing is read or written.

Every rule has its own code, so that a publisher's author finds the one that was broken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from beampipe_dagster.config.canonical import JsonValue, canonical_json, digest, sha256_hex
from beampipe_dagster.errors import InputError

PRODUCTS_MAX: Final = 100_000
"""Products of one execution."""
NAME_MAX: Final = 256
"""Characters of a publisher's name and of a receipt's."""
CLOCK_SKEW: Final = timedelta(minutes=5)
"""How far a publisher's clock may be ahead."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SIZE_MAX: Final = 2**63 - 1
_SCHEMES: Final = frozenset({"s3", "gs", "https"})
_REPORT_FIELDS: Final = frozenset(
    {
        "schema",
        "patterns",
        "pattern_counts",
        "products",
        "inventory_sha256",
        "durable_destination_uri",
        "publication",
    }
)
_PRODUCT_FIELDS: Final = frozenset({"path", "bytes", "sha256"})
_PUBLICATION_FIELDS: Final = frozenset({"acknowledged", "publisher", "receipt_id", "published_at"})


@dataclass(frozen=True, slots=True)
class Product:
    """A published file.

    Attributes
    ----------
    path
        Relative, with ``/`` between its parts.
    size
        In bytes, above 0.
    sha256
        64 lower-case hex digits.
    """

    path: str
    size: int
    sha256: str

    def as_json(self) -> dict[str, JsonValue]:
        """The product as an inventory names it."""
        return {"path": self.path, "bytes": self.size, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Report:
    """A report that keeps all rules.

    Attributes
    ----------
    document
        The report as it was given.
    sha256
        Of the canonical JSON of all of it.
    """

    schema: str
    products: tuple[Product, ...]
    inventory_sha256: str
    destination: str
    publication: dict[str, JsonValue]
    document: dict[str, JsonValue]
    sha256: str

    @property
    def total_bytes(self) -> int:
        """Bytes of all products."""
        return sum(product.size for product in self.products)


def refuse(code: str, message: str, hint: str = "correct the report and send it again") -> NoReturn:
    """End the reading of a report.

    Raises
    ------
    InputError
        Always.
    """
    raise InputError(message, code=code, hint=hint)


def inventory_sha256(products: Sequence[Product]) -> str:
    """SHA-256 of the canonical JSON of the products, in the order in which they are listed."""
    return digest([product.as_json() for product in products])


def read_products(value: object) -> tuple[Product, ...]:
    """The products of a report or of an inventory.

    Raises
    ------
    InputError
        ``output_report_structure``, ``output_products_count``, ``unsafe_product_path``, ``duplicate_product_path``,
        ``invalid_product_size``, ``invalid_product_sha256``: each names the product.
    """
    if not isinstance(value, list):
        refuse("output_report_structure", "products must be a list")
    if not 1 <= len(value) <= PRODUCTS_MAX:
        refuse("output_products_count", f"there must be 1 to {PRODUCTS_MAX:,} products, not {len(value):,}")
    products = tuple(_product(item, number) for number, item in enumerate(value))
    seen: set[str] = set()
    for number, product in enumerate(products):
        if product.path in seen:
            refuse("duplicate_product_path", f"products[{number}].path {product.path!r} is listed twice")
        seen.add(product.path)
    return products


def _product(value: object, number: int) -> Product:
    place = f"products[{number}]"
    found = fields_of(value, _PRODUCT_FIELDS, place)
    path, size, sha256 = found["path"], found["bytes"], found["sha256"]
    if not isinstance(path, str) or not safe_path(path):
        refuse(
            "unsafe_product_path",
            f"{place}.path {path!r} is not a plain relative path",
            "give it relative to the destination, without empty parts, '.', '..' and backslashes",
        )
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= _SIZE_MAX:
        refuse("invalid_product_size", f"{place}.bytes must be a whole number above 0, not {size!r}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        refuse("invalid_product_sha256", f"{place}.sha256 must be 64 lower-case hex digits, not {sha256!r}")
    return Product(path, size, sha256)


def safe_path(path: str) -> bool:
    """Whether a path stays below the place that it is relative to, on every system, and can be stored."""
    usable = "\\" not in path and "\0" not in path and len(path) <= 4096
    return usable and all(part not in {"", ".", ".."} for part in path.split("/"))


def fields_of(value: object, names: frozenset[str], place: str) -> Mapping[str, Any]:
    """An object with these fields and no others.

    Raises
    ------
    InputError
        ``output_report_structure``: names the field.
    """
    if not isinstance(value, dict):
        refuse("output_report_structure", f"{place} must be an object")
    if missing := sorted(names - value.keys()):
        refuse("output_report_structure", f"{place} lacks {missing[0]}")
    if unknown := sorted(value.keys() - names):
        refuse("output_report_structure", f"{place} has the unknown field {unknown[0]!r}")
    return value


def read_report(document: JsonValue, *, now: datetime) -> Report:
    """Read a report by all rules that need no ledger.

    Parameters
    ----------
    now
        No publication may be later, but for clocks that are up to five minutes ahead.

    Raises
    ------
    InputError
        With the code of the first rule that is broken.
    """
    found = fields_of(document, _REPORT_FIELDS, "the report")
    if not isinstance(found["schema"], str):
        refuse("output_report_structure", "schema must be a text")
    _patterns(found["patterns"], found["pattern_counts"])
    products = read_products(found["products"])
    claimed = found["inventory_sha256"]
    if claimed != (computed := inventory_sha256(products)):
        refuse(
            "inventory_sha256_mismatch",
            f"inventory_sha256 is {claimed!r}, but the products give {computed}",
            "hash the canonical JSON of the products in their order: keys sorted, no spaces",
        )
    return Report(
        schema=found["schema"],
        products=products,
        inventory_sha256=computed,
        destination=_destination(found["durable_destination_uri"]),
        publication=_publication(found["publication"], now),
        document=dict(found),
        sha256=sha256_hex(canonical_json(dict(found))),
    )


def _patterns(patterns: object, counts: object) -> None:
    if not isinstance(patterns, list) or not patterns or not all(isinstance(one, str) for one in patterns):
        refuse("invalid_output_patterns", "patterns must be a list of at least one text")
    for pattern in patterns:
        if (
            not pattern.strip()
            or pattern.startswith("/")
            or "\\" in pattern
            or ".." in pattern.split("/")
            or "\0" in pattern
        ):
            refuse(
                "unsafe_output_pattern",
                f"the pattern {pattern!r} is not relative",
                "give patterns relative to the destination, without '..' and backslashes",
            )
    if len(set(patterns)) != len(patterns):
        refuse("duplicate_output_pattern", "a pattern is listed twice")
    if not isinstance(counts, dict) or counts.keys() != set(patterns):
        refuse("pattern_counts_mismatch", "pattern_counts must have the patterns as its keys, and no others")
    for pattern, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            refuse("invalid_pattern_count", f"pattern_counts[{pattern!r}] must be above 0, not {count!r}")


def _destination(value: object) -> str:
    hint = "give an s3, gs or https URI with a host, or file:/// with an absolute path; no credentials, no fragment"
    if not isinstance(value, str):
        refuse("invalid_destination_uri", "durable_destination_uri must be a text", hint)
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        refuse("invalid_destination_uri", "durable_destination_uri is not a URI", hint)
    plain = value.strip() == value and value.isprintable()
    remote = parts.scheme in _SCHEMES and bool(host)
    local = parts.scheme == "file" and not parts.netloc and value.startswith("file:///")
    if not plain or "@" in parts.netloc or "#" in value or not (remote or local):
        # Its text may hold a password: it is not repeated.
        refuse("invalid_destination_uri", "durable_destination_uri cannot be a durable destination", hint)
    return value


def _publication(value: object, now: datetime) -> dict[str, JsonValue]:
    found = fields_of(value, _PUBLICATION_FIELDS, "publication")
    if found["acknowledged"] is not True:
        refuse("publication_not_acknowledged", "publication.acknowledged must be true")
    for name in ("publisher", "receipt_id"):
        text = found[name]
        if not isinstance(text, str) or not text.strip() or len(text) > NAME_MAX:
            refuse("invalid_publication", f"publication.{name} must have 1 to {NAME_MAX} characters")
    at = _moment(found["published_at"])
    if at is None:
        refuse(
            "invalid_publication", "publication.published_at must be a time with its zone, as RFC 3339 has it"
        )
    if at > now + CLOCK_SKEW:
        refuse(
            "published_in_the_future",
            f"publication.published_at {found['published_at']} is in the future",
            "set the publisher's clock",
        )
    return dict(found)


def _moment(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        return None
    return at if at.tzinfo else None
