"""How long tests wait before they give up.

The waits are long, because the machine may be busy: they end a test that hangs, and say nothing
about speed. Speed is measured in ``benchmarks``.
"""

PATIENCE = 90  # seconds: an answer of a server or a page
JOB = 600  # seconds: a job of a worker, which first loads torch and a model
PATIENCE_MS = 1000 * PATIENCE
JOB_MS = 1000 * JOB
