"""The library's public names and signatures are frozen, cheap to import and known to type checkers."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import sluice

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "'str | PathLike[str] | Mapping[str, Any] | Recipe | None'"
DATA = "data: 'str | PathLike[str] | None' = None"
OPTIONS = (
    "home: 'str | PathLike[str] | None' = None, overrides: 'Mapping[str, Any] | None' = None, "
    "mapping: 'str | PathLike[str] | None' = None, as_of: 'str | None' = None, "
)
LAST = "allow_times: 'bool' = False, progress: 'Callable[[str], None] | None' = None"
SIGNATURES = {
    "run": f"({DATA}, recipe: {RECIPE} = None, *, {OPTIONS}until: 'str' = 'promote', promote: 'bool' = True, {LAST})"
    " -> 'Run'",
    "refresh": f"({DATA}, recipe: {RECIPE} = None, *, {OPTIONS}promote: 'bool' = True, {LAST}) -> 'Run'",
    "load_recipe": f"(recipe: {RECIPE} = None, *, {DATA}, overrides: 'Mapping[str, Any] | None' = None) -> 'Recipe'",
    "load_release": "(path: 'str | PathLike[str]') -> 'LoadedRelease'",
    "shipped_recipes": "() -> 'dict[str, Path]'",
    "Run": "(home: 'Path', results: 'dict[str, StageResult]') -> None",
    "Funnel": "(release: 'LoadedRelease', clock: 'Callable[[], int] | None' = None, max_clock_skew_ms: 'int' = 60000)"
    " -> 'None'",
    "Funnel.recommend": "(self, user_id: 'str', k: 'int', time_ms: 'int | None' = None, explain: 'bool' = False, "
    "context: 'Mapping[str, str] | None' = None, wanted: 'ItemFilter | None' = None) -> 'Answer'",
    "Funnel.apply_event": "(self, event: 'Event') -> 'None'",
    "Funnel.known_users": "(self, limit: 'int') -> 'list[str]'",
    "Event": "(event_id: 'str', user_id: 'str', item_id: 'str', signal: 'str', value: 'float', event_time_ms: 'int', "
    "context: 'Mapping[str, str]' = <factory>) -> None",
    "Warehouse": "(url: 'str') -> 'None'",
    "Snapshot": "(directory: 'str | PathLike[str]') -> 'None'",
    "Ease.fit": "(history_UN: 'sparse.csr_matrix', settings: 'EaseSettings', memory_gb: 'float' = 4.0) -> 'Ease'",
    "Ease.score": "(self, history_BN: 'sparse.csr_matrix') -> 'np.ndarray'",
    "ImplicitAls.fit": "(history_UN: 'sparse.csr_matrix', settings: 'ImplicitAlsSettings', seed: 'int')"
    " -> 'ImplicitAls'",
    "ImplicitAls.score": "(self, history_BN: 'sparse.csr_matrix') -> 'np.ndarray'",
}


def test_the_names_are_frozen() -> None:
    assert sluice.__all__ == [
        "Answer",
        "AnsweredItem",
        "ConfigError",
        "ContractError",
        "DataError",
        "Ease",
        "EaseSettings",
        "EmptyDatasetError",
        "Event",
        "FieldError",
        "Funnel",
        "GateError",
        "ImplicitAls",
        "ImplicitAlsSettings",
        "ItemFilter",
        "LoadedRelease",
        "OutOfSpaceError",
        "Recipe",
        "RegistryError",
        "ReleaseError",
        "RequestError",
        "Run",
        "SluiceError",
        "Snapshot",
        "StageResult",
        "TransientError",
        "Warehouse",
        "__version__",
        "load_recipe",
        "load_release",
        "refresh",
        "run",
        "shipped_recipes",
    ]
    assert dir(sluice) == sorted(sluice.__all__)


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_is_frozen(name: str) -> None:
    found = sluice
    for part in name.split("."):
        found = getattr(found, part)
    assert str(inspect.signature(found)) == SIGNATURES[name]


def test_the_settings_of_closed_forms_are_frozen() -> None:
    assert sluice.EaseSettings().model_dump() == {"regularisation": 200.0, "method": "auto", "neighbours": 200}
    assert sluice.ImplicitAlsSettings().model_dump() == {
        "factors": 64,
        "confidence": 1.0,
        "unobserved_weight": None,
        "regularisation": 0.3,
        "regularisation_power": 0.5,
        "iterations": 15,
    }


def test_every_public_function_is_frozen() -> None:
    functions = {name for name in sluice.__all__ if inspect.isfunction(getattr(sluice, name))}
    assert len(functions) > 3
    assert functions <= set(SIGNATURES)


@pytest.mark.parametrize("name", [name for name in sluice.__all__ if name != "__version__"])
def test_every_name_is_there_and_explains_itself(name: str) -> None:
    found = getattr(sluice, name)
    assert found.__name__ == name
    assert len(inspect.getdoc(found) or "") > 20


def test_every_error_of_ours_is_public() -> None:
    from stages.contracts import errors

    ours = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert ours <= set(sluice.__all__)


def test_type_checkers_see_the_names_that_python_gives() -> None:
    """What stands under TYPE_CHECKING comes from the modules that names are imported from."""
    tree = ast.parse((ROOT / "sluice" / "__init__.py").read_text(encoding="utf-8"))
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in guarded.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == sluice._MODULES
    assert set(sluice._MODULES) | {"__version__"} == set(sluice.__all__)


def test_an_unknown_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(AttributeError, match=r"'sluice' has no attribute 'recomend'; it has .*load_release, refresh"):
        _ = sluice.recomend


def test_importing_loads_nothing_but_itself() -> None:
    """Names of modules of others are compared with those of a Python that imports nothing."""
    code = "import sys; before = set(sys.modules); import sluice; print(*{m for m in set(sys.modules) - before})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert {"sluice", "stages"} <= loaded
    assert loaded - {"sluice", "stages"} <= set(sys.stdlib_module_names)


def test_running_a_job_is_offered_without_loading_torch_or_mlflow() -> None:
    code = "import sluice, sys, json; sluice.run, sluice.refresh, sluice.load_recipe; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "mlflow", "airflow", "sqlalchemy"} & set(json.loads(done.stdout))
