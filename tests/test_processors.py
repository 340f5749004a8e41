"""What could depend on how a processor rounds is tested once more as on an old and on a common processor."""

import os
import subprocess
import sys

import pytest

from gpu import NUMERIC_TESTS, ROOT

# What libraries compute with depends on the processor, and on these variables.
PROCESSORS = {
    "SSE4.1": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}


@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_numeric_tests_pass_as_on_another_processor(processor):
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *NUMERIC_TESTS]
    environment = {**os.environ, **PROCESSORS[processor]}
    process = subprocess.run(
        command, check=False, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.returncode == 0, process.stdout.decode(errors="replace")
