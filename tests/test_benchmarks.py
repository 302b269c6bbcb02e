"""`benchmarks`: the table of parity."""

import re
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_table_of_parity_has_every_case_of_a_family(tmp_path):
    """Quick and slow ones: tests/zoo/test_mixtral.py has four."""
    out = tmp_path / "PARITY.md"
    command = [sys.executable, "-m", "benchmarks.parity", "--only=test_mixtral and test_parity", f"--out={out}"]
    subprocess.run(command, check=True, capture_output=True)
    assert re.findall(r"\| (\w+) \| (\d+) \| (\w+) \|", out.read_text()) == [
        ("mixtral", "4", "float32"),
        ("mixtral", "4", "bfloat16"),
    ]
