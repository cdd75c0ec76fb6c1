"""Settings of a source of real pairs: where HQ and LQ are and how one is found for the other."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from datagen.records import Location, Settings


class PairSettings(Settings):
    """Photos that exist twice: taken or kept at high and at low quality."""

    hq: Location = Field(examples=["/path/to/HR"])
    """The HQ photos: a folder, an `s3://` prefix or a `.tar` archive; it may be that of `lq`."""
    lq: Location = Field(examples=["/path/to/LR"])
    """The LQ photos, of any size up to that of their HQ."""
    match: Literal["name", "suffix", "csv"] = "name"
    """How the LQ of an HQ is found: it has the same path without the extension; the same path when
    each one's suffix is taken off; or a table names both."""
    hq_suffix: str = Field("", examples=["_HR"])
    """With `match: suffix`, the end of HQ names before the extension."""
    lq_suffix: str = Field("", examples=["_LR4"])
    """With `match: suffix`, the end of LQ names before the extension."""
    csv: Location | None = Field(None, examples=["/path/to/pairs.csv"])
    """With `match: csv`, a table with the columns `hq` and `lq`: paths below these sources."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.match == "csv") != (self.csv is not None):
            raise ValueError("match=csv and the address of the table, csv, belong together")
        if (self.match == "suffix") != bool(self.hq_suffix or self.lq_suffix):
            raise ValueError("match=suffix and hq_suffix or lq_suffix belong together")
        if self.hq_suffix == self.lq_suffix and self.hq == self.lq and self.match != "csv":
            raise ValueError("hq and lq are the same photos: give other folders or suffixes")
        return self
