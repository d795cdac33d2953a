"""The notebooks run, from top to bottom, and are committed without outputs."""

from __future__ import annotations

import warnings
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.patience import LONG_S

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_committed(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    patience = {"timeout": int(LONG_S), "startup_timeout": int(LONG_S), "iopub_timeout": int(LONG_S)}
    client = NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}, **patience)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Jupyter's own, about sockets and event loops
        client.execute()
    said = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in said)
    assert not [output for output in said if output.get("name") == "stderr"]
