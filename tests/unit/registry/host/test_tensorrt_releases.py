"""The table of TensorRT, Triton containers and drivers: consistent, sourced, and never guessing."""

import pytest

from registry.errors import BadInput, Incompatible
from registry.host.tensorrt_releases import (
    minimum_driver,
    releases,
    same_tensorrt,
    tensorrt_of_container,
    triton_container,
)
from registry.records import Backend


def test_every_row_names_a_page_of_nvidia_and_how_it_was_read() -> None:
    table = releases()
    read = [(row.source, row.evidence) for row in table.containers]
    read += [(row.source, row.evidence) for row in table.drivers]
    for source, evidence in read:
        assert source.startswith("https://docs.nvidia.com/")
        assert evidence


def test_containers_are_listed_once_newest_first_with_rising_tensorrt() -> None:
    rows = releases().containers
    tags = [row.tag for row in rows]
    assert tags == sorted(set(tags), reverse=True)
    versions = [tuple(map(int, row.tensorrt.split("."))) for row in rows]
    assert versions == sorted(versions, reverse=True)


def test_each_container_is_found_by_its_own_tensorrt_or_a_newer_one_with_the_same() -> None:
    for row in releases().containers:
        image = triton_container(row.tensorrt)
        assert tensorrt_of_container(image) == row.tensorrt
        assert image.rpartition(":")[2] >= row.tag


def test_the_newest_container_that_carries_a_tensorrt_is_chosen() -> None:
    assert triton_container("10.13.3.9") == "nvcr.io/nvidia/tritonserver:25.10-py3"


def test_a_build_number_that_the_row_lacks_does_not_matter() -> None:
    assert triton_container("11.2.1.2") == "nvcr.io/nvidia/tritonserver:26.08-py3"


def test_an_unknown_tensorrt_is_refused_with_its_neighbours() -> None:
    with pytest.raises(Incompatible, match=r"11\.1\.5.*26\.07-py3 \(11\.1\.0\.106\) and 26\.08-py3 \(11\.2\.1\)"):
        triton_container("11.1.5")


def test_a_tensorrt_newer_than_every_container_names_only_an_older_one() -> None:
    with pytest.raises(Incompatible, match=r"the nearest are 26\.08-py3 \(11\.2\.1\):"):
        triton_container("99.0.0")


@pytest.mark.parametrize("tag", ["26.08", "26.08-py3", "nvcr.io/nvidia/tritonserver:26.08-py3"])
def test_a_container_is_known_by_month_tag_or_image(tag: str) -> None:
    assert tensorrt_of_container(tag) == "11.2.1"


@pytest.mark.parametrize("tag", ["26.08-trtllm-python-py3", "example.com/tritonserver:26.08-py3", "1.0", ""])
def test_an_unknown_container_is_refused(tag: str) -> None:
    with pytest.raises(Incompatible, match="is not known: use one of the known containers, 26"):
        tensorrt_of_container(tag)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("11.2.1.2", "11.2.1", True),
        ("11.2.1.2", "11.2.1.3", False),
        ("11.2.1", "11.2.2", False),
        ("11.2", "11.2.1", False),
        ("11.2", "11.2", True),
    ],
)
def test_versions_agree_in_every_part_that_both_name(one: str, other: str, same: bool) -> None:
    assert same_tensorrt(one, other) is same


def test_minimum_driver_is_known_for_each_gpu_backend() -> None:
    assert minimum_driver(Backend.TENSORRT, "11.4.0.106") == "580"
    assert minimum_driver(Backend.TENSORRT_RTX, "1.7.1.116") == "580"


def test_a_driver_is_not_guessed() -> None:
    assert minimum_driver(Backend.TENSORRT, "12.0.0") is None
    assert minimum_driver(Backend.ONNXRUNTIME, "1.32.0") is None


def test_malformed_version_is_refused() -> None:
    with pytest.raises(BadInput, match="not numbers and dots"):
        triton_container("latest")
