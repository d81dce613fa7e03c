import pytest

from tests.support.outlier_networks import NETWORKS
from tests.support.quantized_networks import CalibratedNetwork, calibrate_network


@pytest.fixture(scope="session", params=list(NETWORKS))
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CalibratedNetwork:
    return calibrate_network(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> CalibratedNetwork:
    return calibrate_network("bert", tmp_path_factory.mktemp("one"))
