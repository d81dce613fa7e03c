"""A registry to read, made of rows that are found without mlflow; what they do not tell is left to the whole store."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from registry.errors import BadInput
from registry.mlflow.rows import COMPLETE, STATE, bundle_of, event_from, row_from
from registry.names import check_name
from registry.records import EngineVersion, PromotionEvent
from registry.store import Bundle, BundleFiles, ServingStore, no_alias


@dataclass(frozen=True)
class VersionRow:
    """A version as mlflow's client would return it; `source` is the URI of its files."""

    name: str
    version: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    source: str


class QuickRows(Protocol):
    """Where rows are found without mlflow. None stands for: ask the whole store, which says what is wrong, too."""

    def aliases(self, model: str) -> dict[str, int] | None:
        """Return a model's aliases; an unknown model has none."""

    def version(self, model: str, version: int) -> VersionRow | None:
        """Return one version, complete or not."""

    def versions(self, model: str | None, newest: int | None) -> list[VersionRow] | None:
        """Return the `newest` complete versions of a model or of all, with their aliases; None for as many as exist."""

    def events(
        self, model: str, alias: str | None, outcome: str | None, newest: int | None
    ) -> list[Mapping[str, str]] | None:
        """Return the tags of events of a model's history, newest first."""

    def open_files(self, source: str) -> BundleFiles | None:
        """Open the files of a version."""


class QuickStore:
    """A `ServingStore` that answers from rows where they tell."""

    def __init__(self, rows: QuickRows, open_whole: Callable[[], ServingStore]) -> None:
        self._rows, self._open_whole = rows, open_whole

    @cached_property
    def _whole(self) -> ServingStore:
        return self._open_whole()

    def aliases(self, model: str) -> dict[str, int]:
        """See `ServingStore.aliases`."""
        found = self._rows.aliases(check_name(model, what="model"))
        return self._whole.aliases(model) if found is None else found

    def version(self, model: str, version: int) -> EngineVersion:
        """See `ServingStore.version`."""
        complete = self._find_complete(model, version)
        # One that is torn or missing: the whole store raises the right error.
        return row_from(complete) if complete else self._whole.version(model, version)

    def versions(self, model: str | None = None, *, newest: int | None = None) -> tuple[EngineVersion, ...]:
        """See `ServingStore.versions`."""
        found = self._rows.versions(check_name(model, what="model") if model else None, newest)
        try:
            rows = None if found is None else [row_from(version) for version in found]
        except BadInput:  # the whole store leaves out what was edited, and says so
            rows = None
        if rows is None:
            return self._whole.versions(model, newest=newest)
        return tuple(sorted(rows, key=lambda row: (row.model, row.version)))

    def resolve(self, model: str, alias: str) -> EngineVersion:
        """See `ServingStore.resolve`."""
        aliases = self.aliases(model)
        if alias not in aliases:
            raise no_alias(model, alias, aliases)
        return self.version(model, aliases[alias])

    def open_bundle(self, model: str, version: int) -> Bundle:
        """See `ServingStore.open_bundle`."""
        complete = self._find_complete(model, version)
        files = self._rows.open_files(complete.source) if complete else None
        if complete is None or files is None:
            return self._whole.open_bundle(model, version)
        return bundle_of(complete, files)

    def events(
        self, model: str, *, alias: str | None = None, outcome: str | None = None, newest: int | None = None
    ) -> tuple[PromotionEvent, ...]:
        """See `ServingStore.events`."""
        for name, what in ((alias, "alias"), (outcome, "outcome")):
            if name is not None:
                check_name(name, what=what)
        found = self._rows.events(check_name(model, what="model"), alias, outcome, newest)
        if found is None:
            return self._whole.events(model, alias=alias, outcome=outcome, newest=newest)
        return tuple(event_from(tags) for tags in reversed(found))

    def _find_complete(self, model: str, version: int) -> VersionRow | None:
        row = self._rows.version(check_name(model, what="model"), version)
        return row if row is not None and row.tags.get(STATE) == COMPLETE else None
