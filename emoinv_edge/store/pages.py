"""The pages of a store: which profiles there are, in which rows and states, by buckets of their names.

A write touches the page of its profile, however many profiles there are. Which bucket a name has, only the key shows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import sqlite3

from ..errors import SealError
from ..fields import read_json
from .codec import encode_json, refusing
from .keys import StoreKeys

__all__ = ["Entry", "Pages", "digest_of"]

MAX_PAGE_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One profile in its page: which row, in which state."""

    row: int
    version: int
    body_digest: str
    trail_digest: str

    @property
    def state(self) -> str:
        """Its `Profile.version`."""
        return f"{self.row}.{self.version}"


class Pages:
    """The pages within one transaction; each is read when it is first asked for.

    Parameters
    ----------
    db : sqlite3.Connection
    keys : StoreKeys

    Attributes
    ----------
    digests : dict of int to str
        SHA-256 of the page of each bucket, as the root has them.
    """

    def __init__(self, db: sqlite3.Connection, keys: StoreKeys) -> None:
        self.digests: dict[int, str] = {}
        self._db = db
        self._keys = keys
        self._seal = keys.seal()
        self._pages: dict[int, dict[str, Entry]] = {}
        self._changed: set[int] = set()

    def get(self, name: str) -> Entry | None:
        """The entry of the profile of that name, or None."""
        return self._page(self._bucket(name)).get(name)

    def set(self, name: str, entry: Entry | None) -> None:
        """Put an entry in the place of the one of this name; None drops it."""
        page = self._page(self._bucket(name))
        if entry is None:
            del page[name]
        else:
            page[name] = entry
        self._changed.add(self._bucket(name))

    def all(self) -> dict[str, Entry]:
        """Every entry, by name."""
        for bucket in self.digests:
            self._page(bucket)
        return {name: entry for page in self._pages.values() for name, entry in page.items()}

    def write(self) -> None:
        """Seal what was changed into both copies of its page."""
        for bucket in self._changed:
            listed = [[name, *dataclasses.astuple(entry)] for name, entry in self._pages[bucket].items()]
            if not listed:
                self.digests.pop(bucket, None)
                self._db.execute("DELETE FROM page WHERE bucket = ?", (bucket,))
                continue
            body = self._seal.close(encode_json(listed), self._keys.bound_to("page", bucket))
            self.digests[bucket] = digest_of(body)
            for copy in (1, 2):
                self._db.execute("INSERT OR REPLACE INTO page VALUES (?, ?, ?)", (copy, bucket, body))
        self._changed.clear()

    def _bucket(self, name: str) -> int:
        message = b"emoinv bucket\0" + name.encode("utf-8", "surrogatepass")
        return hmac.digest(self._keys.data_key, message, "sha256")[0]

    def _page(self, bucket: int) -> dict[str, Entry]:
        if bucket not in self._pages:
            self._pages[bucket] = self._read(bucket) if bucket in self.digests else {}
        return self._pages[bucket]

    def _read(self, bucket: int) -> dict[str, Entry]:
        for copy in (1, 2):
            query = "SELECT body FROM page WHERE copy = ? AND bucket = ? AND length(body) <= ?"
            try:
                row = self._db.execute(query, (copy, bucket, MAX_PAGE_BYTES)).fetchone()
            except sqlite3.OperationalError:  # locked, full, ...
                raise
            except sqlite3.DatabaseError:  # a damaged copy does not cost the profiles
                continue
            if row is not None and digest_of(row[0]) == self.digests[bucket]:
                with refusing("a page of a store"):
                    opened = self._seal.open(row[0], self._keys.bound_to("page", bucket))
                    return {name: Entry(*state) for name, *state in read_json(opened)}
        raise SealError(
            "a page of the store was altered, put back to an older state or is lost, with the names in it; "
            "restore the store from a copy"
        )


def digest_of(sealed: object) -> str:
    """SHA-256 of a sealed value in hexadecimal; empty for what is none."""
    return hashlib.sha256(sealed).hexdigest() if isinstance(sealed, bytes) else ""
