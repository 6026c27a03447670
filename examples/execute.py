"""Execute the notebook beside this file and keep what it shows:  python examples/execute.py [RUN]

Execution times and counters are left out, so that the notebook changes only if its results do.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

PATH = Path(__file__).parent / "first_look.ipynb"


def executed(run: Path) -> nbformat.NotebookNode:
    """Return the notebook with its outputs for `run`."""
    os.environ["PICO_RUN"] = str(run.resolve())
    notebook = nbformat.read(PATH, as_version=4)
    NotebookClient(notebook, timeout=600, record_timing=False, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        for output in cell.get("outputs", []):
            output.get("metadata", {}).clear()
        if "execution_count" in cell:
            cell.execution_count = None
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


if __name__ == "__main__":
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    if not (run / "run.json").is_file():
        sys.exit(f"there is no run in {run}: make one with `make demo`, or name another")
    try:
        nbformat.write(executed(run), PATH)
    except CellExecutionError as error:
        sys.exit(str(error))
