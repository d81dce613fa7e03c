"""`enginery verify --golden`: what it prints, and by which exit code a script knows what was found."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from registry.bundle.signing import sign_bundle
from tasks.backends.ort import cpu as ort
from tasks.bundle.golden import Golden
from tests.support.commands import Enginery
from tests.support.golden_bundles import edit_golden, golden_bundle, reseal
from tests.support.publisher import Publisher
from tests.support.triton_bundles import L4, write_bundle


@pytest.fixture
def bundle(tmp_path: Path, publisher: Publisher) -> Path:
    folder, _ = golden_bundle(tmp_path / "opinions" / "1")
    reseal(folder, backend_version=ort.version())
    sign_bundle(folder, publisher.signer)
    return folder


def spoil(golden: Golden) -> Golden:
    outputs = tuple(replace(each, values=tuple(10 + value for value in each.values)) for each in golden.rows[0].outputs)
    return replace(golden, rows=(replace(golden.rows[0], outputs=outputs), *golden.rows[1:]))


def test_a_line_for_each_check_and_exit_code_0(bundle: Path, enginery: Enginery) -> None:
    current = bundle.parent / "current"
    current.symlink_to(bundle.name)
    ran = enginery("verify", current, "--golden")
    assert ran.code == 0
    intact, preprocessing, answers = ran.out.splitlines()
    assert intact.startswith(f"{bundle} is intact and signed")
    assert preprocessing == "preprocessing: same, 3 golden inputs"
    assert answers.startswith("answers: same, 3 golden inputs, largest difference 0 ")
    document = enginery("verify", current, "--golden", "--json").json
    assert (document["intact"], [each["outcome"] for each in document["golden"]]) == (True, ["same", "same"])
    assert "golden" not in enginery("verify", current, "--json").json


def test_other_answers_are_exit_code_4_and_a_sentence(bundle: Path, enginery: Enginery, publisher: Publisher) -> None:
    edit_golden(bundle, spoil)
    sign_bundle(bundle, publisher.signer)
    ran = enginery("verify", bundle, "--golden")
    assert ran.code == 4
    assert "answers: differs, 1 of 3 golden inputs" in ran.out
    assert len(ran.err.splitlines()) == 1
    assert "do not serve it from this host" in ran.err
    as_json = enginery("verify", bundle, "--golden", "--json")
    assert as_json.code == 4
    assert [each["outcome"] for each in json.loads(as_json.out)["golden"]] == ["same", "differs"]


def test_a_host_that_cannot_run_the_engine_is_exit_code_2(
    tmp_path: Path, enginery: Enginery, publisher: Publisher
) -> None:
    folder = golden_bundle(tmp_path / "opinions" / "1")[0]
    reseal(folder, backend=L4.backend, target=L4, backend_version="11.2.1.2")
    sign_bundle(folder, publisher.signer)
    ran = enginery("verify", folder, "--golden")
    assert ran.code == 2
    assert "preprocessing: same" in ran.out
    assert "answers: not run" in ran.out
    assert "this host cannot run the golden inputs, verify on one of target l4" in ran.err


def test_a_bundle_without_golden_inputs_says_so(tmp_path: Path, enginery: Enginery, publisher: Publisher) -> None:
    folder = write_bundle(tmp_path / "opinions" / "1")
    sign_bundle(folder, publisher.signer)
    assert enginery("verify", folder).code == 0
    ran = enginery("verify", folder, "--golden")
    assert ran.code == 2
    assert "is intact and signed" in ran.out
    assert "has no golden inputs" in ran.err


@pytest.mark.parametrize("name", ["golden.json", "engine.onnx", "tokenizer.json"])
def test_a_bundle_that_was_changed_is_not_run(
    name: str, bundle: Path, enginery: Enginery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> Callable[..., object]:
        raise AssertionError("an engine that is not what was published may not be loaded")

    monkeypatch.setattr("tasks.bundle.check_golden.check_golden", never)
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[:-1] + b"X")
    ran = enginery("verify", bundle, "--golden")
    assert ran.code == 1
    assert name in ran.err
