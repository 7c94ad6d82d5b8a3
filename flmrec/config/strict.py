"""What every section has in common: unknown keys and wrong types are refused."""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", strict=True)
