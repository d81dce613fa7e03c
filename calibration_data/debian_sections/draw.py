"""Draw the sample data: descriptions of Debian packages, labelled by archive section.

Every choice is a hash of the seed and a name, never a position in a stream of random numbers, so the
same package lists always give the same rows, and a package that enters or leaves the lists moves few others.

Reading the lists needs python-debian, which nothing else in the project uses; it is imported only there.
"""

import argparse
import hashlib
import importlib
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Value

NAME = "debian_sections"
SEED = 20261123
SECTIONS = (
    "admin",
    "doc",
    "fonts",
    "games",
    "gnu-r",
    "graphics",
    "javascript",
    "net",
    "perl",
    "python",
    "science",
    "sound",
)
SPLIT_ROWS = {"fit": 4000, "calibration": 1024, "evaluation": 2400}
LONG_SHARE = 1 / 3
MAX_CHARACTERS = 400
PLACEHOLDER = re.compile(r"\b(transitional|dummy)\b", re.IGNORECASE)
LICENCE = (
    "Each description is the work of its package's authors and maintainers and stays under the terms that"
    " the package's own debian/copyright file states for its packaging; those terms differ between packages."
    " All packages come from Debian's main component, which under the Debian Free Software Guidelines accepts"
    " only freely redistributable works, and Debian publishes these lists for mirrors to copy. No separate"
    " licence for the lists as a collection was found, and this project's own licence does not replace the"
    " packages' terms."
)


@dataclass(frozen=True, order=True)
class Description:
    """What the lists say of one binary package; packages of one source tend to share their wording."""

    package: str
    source: str
    section: str
    summary: str
    long: str


@dataclass(frozen=True)
class Row:
    """One labelled text as shipped."""

    text: str
    section: str
    package: str


def draw_number(purpose: str, name: str) -> float:
    """Return a number in [0, 1) that the seed, the purpose and the name fix, so draws are independent."""
    digest = hashlib.sha256(f"{SEED}/{purpose}/{name}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def paragraphs(path: Path) -> Iterator[Mapping[str, str]]:
    """Yield the stanzas of a Debian control file, also of a signed one, by python-debian's own reader."""
    deb822: Any = importlib.import_module("debian.deb822")
    with path.open("rb") as stream:
        yield from deb822.Deb822.iter_paragraphs(stream, use_apt_pkg=False)


def read_descriptions(packages: Path, translation: Path) -> list[Description]:
    """Join the lists on package and description digest, as one name may stand for several versions."""
    wanted: dict[tuple[str, str], tuple[str, str]] = {}
    for stanza in paragraphs(packages):
        if stanza["Section"] in SECTIONS and "Description-md5" in stanza:
            name = stanza["Package"]
            source = stanza.get("Source", name).split()[0]
            wanted[name, stanza["Description-md5"]] = (source, stanza["Section"])
    found: dict[str, Description] = {}
    for stanza in paragraphs(translation):
        key = (stanza["Package"], stanza["Description-md5"])
        if key in wanted:
            source, section = wanted[key]
            summary, *lines = stanza["Description-en"].splitlines()
            body = " ".join(line for line in lines if line.strip() != ".")
            found[key[0]] = Description(key[0], source, section, " ".join(summary.split()), " ".join(body.split()))
    return sorted(found.values())


def core_of(summary: str) -> str:
    """Reduce a summary to what siblings share: no parenthesis such as "(data files)", no digits, no case."""
    return " ".join(re.findall(r"[^\W\d_]+", re.sub(r"\([^)]*\)", " ", summary).casefold()))


def families(descriptions: Iterable[Description]) -> dict[str, str]:
    """Map each source package to one name for all the sources tied to it by a summary with the same core.

    Two versions of one program are two sources with one description; kept apart by source alone, they could
    stand on both sides of a split.
    """
    parent: dict[str, str] = {}

    def root(source: str) -> str:
        parent.setdefault(source, source)
        while parent[source] != source:
            parent[source] = parent[parent[source]]
            source = parent[source]
        return source

    first_with_core: dict[str, str] = {}
    for item in descriptions:
        relative = first_with_core.setdefault(core_of(item.summary), item.source)
        one, other = sorted((root(item.source), root(relative)))
        parent[other] = one
    return {source: root(source) for source in sorted(parent)}


def splits_in_turn() -> list[str]:
    """Return each split's name as often as it needs rows, spread so that any stretch holds the same mix."""
    places = [((place + 0.5) / rows, name) for name, rows in SPLIT_ROWS.items() for place in range(rows)]
    return [name for _, name in sorted(places)]


def text_of(item: Description) -> str:
    """Return the summary, for a fixed share with the long description, collapsed and cut at a word."""
    long = item.long if draw_number("long", item.package) < LONG_SHARE else ""
    text = f"{item.summary}: {long}" if long else item.summary
    return textwrap.shorten(text, MAX_CHARACTERS, placeholder="")


def quotas(total: int, available: Mapping[str, int]) -> dict[str, int]:
    """Share a total out as evenly as the counts allow; what a short section lacks, the others give evenly."""
    shares: dict[str, int] = {}
    ascending = sorted(available, key=lambda name: (available[name], name))
    for index, name in enumerate(ascending):
        shares[name] = min(available[name], (total - sum(shares.values())) // (len(ascending) - index))
    if sum(shares.values()) != total:
        raise ValueError(f"{total} rows wanted, {sum(available.values())} available")
    return shares


def draw_splits(descriptions: Sequence[Description]) -> dict[str, list[Row]]:
    """Draw all splits: one row of each family, in the same proportions of sections in every split.

    A single source may hold over a hundred packages worded alike (one for each language, say). Taken whole
    they would fill a third of a section in one split and be absent from the others, and the splits would no
    longer be exchangeable, which is what calibration rests on.
    """
    usable = [item for item in descriptions if core_of(item.summary) and not PLACEHOLDER.search(item.summary)]
    family = families(sorted(usable))
    kept: dict[str, Description] = {}
    for item in sorted(usable, key=lambda item: draw_number("row", item.package)):
        kept.setdefault(family[item.source], item)
    pool = {section: [item for item in kept.values() if item.section == section] for section in SECTIONS}
    shares = quotas(sum(SPLIT_ROWS.values()), {section: len(items) for section, items in pool.items()})
    chosen = [item for section in SECTIONS for item in pool[section][: shares[section]]]
    splits: dict[str, list[Row]] = {name: [] for name in SPLIT_ROWS}
    for split, item in zip(splits_in_turn(), chosen, strict=True):
        splits[split].append(Row(text_of(item), item.section, item.package))
    for rows in splits.values():
        rows.sort(key=lambda row: draw_number("order", row.package))
    return splits


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """Write one split; the schema carries the label names, so `datasets` restores them by itself."""
    features = Features(
        {
            "text": Value("string"),
            "label": ClassLabel(names=list(SECTIONS)),
            "section": Value("string"),
            "package": Value("string"),
        }
    )
    columns = {
        "text": [row.text for row in rows],
        "label": [SECTIONS.index(row.section) for row in rows],
        "section": [row.section for row in rows],
        "package": [row.package for row in rows],
    }
    table = pa.table(columns, schema=features.arrow_schema)
    pq.write_table(table, path, compression="zstd", compression_level=19)


def sha256(path: Path) -> str:
    """Return a file's digest, the means by which a reader tells that the data are the ones described."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_dataset(splits: Mapping[str, Sequence[Row]], source: Mapping[str, object], folder: Path) -> None:
    """Write the splits and the manifest that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    entries: dict[str, dict[str, object]] = {}
    for split, rows in splits.items():
        path = folder / f"{split}.parquet"
        write_parquet(rows, path)
        entries[split] = {"file": path.name, "rows": len(rows), "sha256": sha256(path)}
    manifest = {
        "name": NAME,
        "columns": {
            "text": "string: summary, in about a third of the rows followed by ': ' and the long description",
            "label": "int64: index of the section in label_names",
            "section": "string: archive section, the label's name",
            "package": "string: binary package that the text describes",
        },
        "label_names": SECTIONS,
        "splits": entries,
        "seed": SEED,
        "source": source,
        "written_with": f"pyarrow {pa.__version__}",
        "licence": LICENCE,
    }
    (folder / "dataset.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def describe_source(release: Path, packages: Path, translation: Path) -> dict[str, object]:
    """State which lists were read in terms that hold on any mirror: the release's own words, and digests."""
    stanza = next(iter(paragraphs(release)))
    return {
        "description": "Package list (amd64) and English description list of the main component of"
        f" {stanza['Origin']} {stanza['Version']} ({stanza['Codename']})",
        "date": stanza["Date"],
        "packages_sha256": sha256(packages),
        "translation_sha256": sha256(translation),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the lists named on the command line and write the data beside this script, or where told."""
    parser = argparse.ArgumentParser(description="Draw package descriptions labelled by archive section.")
    parser.add_argument("--release", type=Path, required=True, help="the release file, InRelease")
    parser.add_argument("--packages", type=Path, required=True, help="the package list, uncompressed")
    parser.add_argument("--translation", type=Path, required=True, help="Translation-en, uncompressed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write")
    options = parser.parse_args(arguments)
    splits = draw_splits(read_descriptions(options.packages, options.translation))
    source = describe_source(options.release, options.packages, options.translation)
    write_dataset(splits, source, options.out)


if __name__ == "__main__":
    main()
