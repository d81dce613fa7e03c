"""What model tasks read and answer, made of package entries: all of it stands in the entries, nothing is invented."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calibration_data.debian_sections.draw import draw_number

Entry = Mapping[str, Any]
# The most frequent tags that a summary can tell, and what each claims.
CLAIMS = {
    "role::program": "It is a program.",
    "role::shared-lib": "It is a shared library.",
    "role::devel-lib": "It is for building other software.",
    "role::documentation": "It is documentation.",
    "role::plugin": "It is a plugin.",
    "implemented-in::perl": "It is written in Perl.",
    "implemented-in::python": "It is written in Python.",
    "implemented-in::c": "It is written in C.",
    "interface::commandline": "It is used on the command line.",
    "interface::graphical": "It has windows.",
    "use::gameplaying": "It is a game.",
    "works-with::text": "It works with texts.",
    "works-with::audio": "It works with sound.",
    "network::server": "It is a server.",
}
CANDIDATES = 12
# Every other package is a query; half of what is ranked for it are the nearest of these many.
QUERY_STEP, RANKED, SEARCHED = 2, 8, 48


def make_summaries(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Make rows of a summary: which token of it is masked the task decides."""
    return [{"text": each["summary"]} for each in entries]


def make_tags(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Make rows of a summary and those of its tags that CLAIMS has."""
    return [{"text": each["summary"], "labels": [tag for tag in CLAIMS if tag in each["tags"]]} for each in entries]


def make_descriptions(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Make rows of a summary and, in words, what its tags claim."""
    return [{"text": each["summary"], "target": _claim_words(each)} for each in entries]


def make_claims(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Make rows of a summary, a claim, and whether a tag supports it."""
    rows = []
    for entry in entries:
        is_true = draw_number("truth", entry["package"]) < 0.5
        fitting = [tag for tag in CLAIMS if (tag in entry["tags"]) == is_true] or list(CLAIMS)
        tag = _choose(fitting, entry["package"])
        label = "yes" if tag in entry["tags"] else "no"
        rows.append({"text": entry["summary"], "text_pair": CLAIMS[tag], "label": label})
    return rows


def make_sizes(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Make rows of name and summary, and the installed size in kB."""
    return [{"text": f"{each['package']}: {each['summary']}", "score": float(each["size_kb"])} for each in entries]


def make_pairs(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Make rows of two summaries and the share of their tags that both have: every other pair is a near one."""
    rows = []
    for at, entry in enumerate(entries):
        others = [entries[(at + 1 + step * 37) % len(entries)] for step in range(CANDIDATES)]
        other = max(others, key=lambda other: _overlap(entry, other)) if at % 2 else others[0]
        rows.append({"text": entry["summary"], "text_pair": other["summary"], "score": _overlap(entry, other)})
    return rows


def make_rankings(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Make rows of what a package's section and tags claim, another package, and how much of that both have: 0 to 3."""
    rows: dict[tuple[str, str], float] = {}
    for at in range(0, len(entries), QUERY_STEP):
        entry, others = entries[at], [entries[(at + 1 + step * 7) % len(entries)] for step in range(SEARCHED)]
        near = sorted(others, key=lambda other: -_claim_overlap(entry, other))[: RANKED // 2]
        far = [other for other in others if other not in near][: RANKED - len(near)]
        for other in (*near, *far):
            pair = f"{entry['section']}: {_claim_words(entry)}", f"{other['package']}: {other['summary']}"
            rows[pair] = float(min(3, int(4 * _claim_overlap(entry, other))))
    return [{"query": query, "text": text, "score": score} for (query, text), score in rows.items()]


def _claim_words(entry: Entry) -> str:
    """Return in words what the tags of a package claim: "a shared library, written in perl"."""
    words = {tag: claim.rstrip(".").removeprefix("It is ").removeprefix("It ").lower() for tag, claim in CLAIMS.items()}
    return ", ".join(claim for tag, claim in words.items() if tag in entry["tags"]) or "nothing known"


def _claim_overlap(entry: Entry, other: Entry) -> float:
    one, two = ({each["section"], *CLAIMS.keys() & {*each["tags"]}} for each in (entry, other))
    return len(one & two) / len(one | two)


def _overlap(entry: Entry, other: Entry) -> float:
    one, two = set(entry["tags"]), set(other["tags"])
    return len(one & two) / len(one | two)


def make_words(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Make rows of an entry's words, its fields in some order, with a tag each: package, version, person, address."""
    rows = []
    for entry in entries:
        name, email = entry["maintainer"].rsplit(" <", 1)
        fields = [
            [(word, "O") for word in entry["summary"].split()],
            [(entry["package"], "B-PACKAGE"), (entry["version"], "B-VERSION")],
            [(word, "I-PERSON" if at else "B-PERSON") for at, word in enumerate(name.split())],
            [(f"<{email}", "B-ADDRESS")],
            [(entry["homepage"], "B-ADDRESS")],
            [pair for depend in entry["depends"] for pair in _tag_depend(depend)],
        ]
        fields.sort(key=lambda field: draw_number("field", f"{entry['package']} {field[0][0] if field else ''}"))
        pairs = [pair for field in fields for pair in field]
        rows.append({"words": [word for word, _ in pairs], "tags": [tag for _, tag in pairs]})
    return rows


def _tag_depend(depend: str) -> list[tuple[str, str]]:
    """Tag the words of "libc6 (>= 2.34)"."""
    name, _, version = depend.partition(" (")
    relation, _, number = version.rstrip(")").partition(" ")
    return [(name, "B-PACKAGE"), *([(f"({relation}", "O"), (f"{number})", "B-VERSION")] if number else [])]


def make_questions(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Make rows of a question on a package, its entry as text, and where in it the answer stands."""
    rows = []
    for entry in entries:
        name, _ = entry["maintainer"].rsplit(" <", 1)
        asked = {
            f"Who maintains {entry['package']}?": name,
            f"Which version of {entry['package']} is there?": entry["version"],
            f"Where is the home page of {entry['package']}?": entry["homepage"],
            f"In which section is {entry['package']}?": entry["section"],
            f"What is {entry['package']}?": entry["summary"],
        }
        lines = [
            f"Version: {entry['version']}",
            f"Maintainer: {entry['maintainer']}",
            f"Section: {entry['section']}",
            f"Homepage: {entry['homepage']}",
            f"Depends: {', '.join(entry['depends'])}",
            f"Description: {entry['summary']}",
        ]
        lines.sort(key=lambda line: draw_number("line", f"{entry['package']} {line}"))
        context, question = "\n".join(lines), _choose(list(asked), entry["package"])
        begin = {"Who": "Maintainer", "Whi": "Version", "Whe": "Homepage", "In ": "Section", "Wha": "Description"}
        start = context.index(f"{begin[question[:3]]}: ") + len(begin[question[:3]]) + 2
        answers = {"text": [asked[question]], "answer_start": [start]}
        rows.append({"question": question, "context": context, "answers": answers})
    return rows


def _choose(choices: Sequence[str], name: str) -> str:
    return choices[int(draw_number("choice", name) * len(choices))]


ROWS: Mapping[str, Callable[[Sequence[Entry]], list[dict[str, Any]]]] = {
    "fill-mask": make_summaries,
    "multi-label-classification": make_tags,
    "question-answering": make_questions,
    "sentence-similarity": make_pairs,
    "text-pair-classification": make_claims,
    "text2text-generation": make_descriptions,
    "text-ranking": make_rankings,
    "text-regression": make_sizes,
    "token-classification": make_words,
}
