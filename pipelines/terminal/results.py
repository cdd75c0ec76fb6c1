"""Results of verbs that more than one folder has to know."""

from __future__ import annotations

from datetime import datetime

from datagen.records import FrozenModel


class Deployed(FrozenModel):
    """What the server holds now."""

    deployment: str
    """`<flow>/<name>`, as Prefect's commands take it."""
    id: str
    output: str
    work_pool: str
    schedule: str | None
    schedule_id: str | None
    next_run: datetime | None
