"""Draw the entries: Debian packages that somebody tagged (debtags), one of each source package.

As in debian_sections every choice is a hash of the seed and a name. Reading the list needs python-debian, which nothing
else in the project uses.
"""

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from calibration_data.debian_sections.draw import LICENCE, PLACEHOLDER, draw_number, paragraphs, sha256

SPLIT_ROWS = {"fit": 2400, "calibration": 800, "evaluation": 1600}
MOST_DEPENDS = 4


@dataclass(frozen=True)
class Package:
    """An entry of the package list; `size_kb` is its installed size."""

    package: str
    version: str
    maintainer: str
    section: str
    homepage: str
    size_kb: int
    depends: tuple[str, ...]
    summary: str
    tags: tuple[str, ...]


def read_packages(packages: Path) -> list[Package]:
    """Read the tagged packages of a list, one of each source."""
    kept: dict[str, Package] = {}
    stanzas = sorted(_usable(paragraphs(packages)), key=lambda stanza: draw_number("source", stanza["Package"]))
    for stanza in stanzas:
        source = stanza.get("Source", stanza["Package"]).split()[0]
        kept.setdefault(source, _read(stanza))
    return sorted(kept.values(), key=lambda package: draw_number("package", package.package))


def _usable(stanzas: Iterable[Mapping[str, str]]) -> Iterable[dict[str, str]]:
    for stanza in stanzas:
        if not all(name in stanza for name in ("Tag", "Homepage", "Maintainer", "Installed-Size", "Depends")):
            continue
        if "<" in stanza["Maintainer"] and not PLACEHOLDER.search(stanza["Description"]):
            yield {name: str(value) for name, value in stanza.items()}


def _read(stanza: Mapping[str, str]) -> Package:
    depends = [part.split("|")[0].strip() for part in stanza["Depends"].split(",")]
    return Package(
        stanza["Package"],
        stanza["Version"],
        " ".join(stanza["Maintainer"].split()),
        stanza["Section"],
        stanza["Homepage"].strip(),
        int(stanza["Installed-Size"]),
        tuple(depends[:MOST_DEPENDS]),
        " ".join(stanza["Description"].splitlines()[0].split()),
        tuple(sorted(set(re.split(r"[,\s]+", stanza["Tag"].strip())) - {""})),
    )


def write_splits(packages: Sequence[Package], source: Mapping[str, object], folder: Path) -> None:
    """Write the splits, and the manifest that names them."""
    start, entries = 0, {}
    for split, count in SPLIT_ROWS.items():
        table = pa.Table.from_pylist([asdict(package) for package in packages[start : start + count]])
        path = folder / f"{split}.parquet"
        pq.write_table(table, path, compression="zstd", compression_level=19)
        entries[split] = {"file": path.name, "rows": table.num_rows, "sha256": sha256(path)}
        start += count
    manifest = {"name": "debian_packages", "splits": entries, "source": source, "licence": LICENCE}
    (folder / "dataset.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Read the list that the command line names, and write the data beside this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", type=Path, required=True, help="the release file, InRelease")
    parser.add_argument("--packages", type=Path, required=True, help="the package list, uncompressed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write")
    options = parser.parse_args()
    stanza = next(iter(paragraphs(options.release)))
    source = {
        "description": f"Package list (amd64) of the main component of {stanza['Origin']} {stanza['Version']}",
        "date": stanza["Date"],
        "packages_sha256": sha256(options.packages),
    }
    write_splits(read_packages(options.packages), source, options.out)


if __name__ == "__main__":
    main()
