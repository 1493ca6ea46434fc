"""The address of MLflow's page of runs, on a real store."""

from __future__ import annotations

from itertools import count

import pytest

from stages.contracts.errors import ConfigError, RegistryError, ReleaseError
from stages.release.config import RegistryConfig
from stages.release.registry import ReleaseRegistry

SERVER = "http://127.0.0.1:5000"
_NUMBERS = count()


@pytest.fixture
def registry(store, make_release, tmp_path) -> ReleaseRegistry:
    name = f"page-{next(_NUMBERS)}"
    made = ReleaseRegistry(RegistryConfig(**store, model_name=name, experiment=name))
    made.register(make_release(tmp_path))
    return made


def test_the_page_is_the_experiments_view_of_machine_learning(registry) -> None:
    run = registry._client.get_run(registry.list()[0].run_id)
    page = f"/#/experiments/{run.info.experiment_id}?workflowType=machine_learning"
    assert registry.runs_page(SERVER) == SERVER + page
    assert registry.runs_page("https://host.example/mlflow/") == "https://host.example/mlflow" + page


@pytest.mark.parametrize(
    "server",
    ["", "127.0.0.1:5000", "ftp://host", "http://", "http://host:port", "http://[", "http://h?a=b", "http://h#a"],
)
def test_an_address_of_no_server_is_refused(registry, server) -> None:
    with pytest.raises(ConfigError, match=r"server = .*allowed is an address such as http://"):
        registry.runs_page(server)


def test_a_password_is_never_printed(registry) -> None:
    with pytest.raises(ConfigError, match="user, query and fragment are not allowed") as refused:
        registry.runs_page("http://me:secret-word@host")
    assert "secret-word" not in str(refused.value)


def test_an_experiment_that_is_not_there_or_was_deleted_is_said_and_not_made(registry) -> None:
    other = ReleaseRegistry(registry.config.model_copy(update={"experiment": "another"}))
    with pytest.raises(ReleaseError, match=r"experiment = 'another': no such experiment"):
        other.runs_page(SERVER)
    assert registry._client.get_experiment_by_name("another") is None
    found = registry._client.get_experiment_by_name(registry.config.experiment)
    registry._client.delete_experiment(found.experiment_id)
    with pytest.raises(ReleaseError, match="the experiment was deleted"):
        registry.runs_page(SERVER)


def test_a_store_that_is_not_there_is_not_made(tmp_path) -> None:
    registry = ReleaseRegistry(RegistryConfig(tracking_uri=f"sqlite:///{tmp_path}/none.db"))
    with pytest.raises(RegistryError, match="no such file"):
        registry.runs_page(SERVER)
    assert not list(tmp_path.iterdir())
