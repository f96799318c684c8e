import os
import sys

# One thread on the processor, whatever starts a stage: more round otherwise, and two stages of one thread each do more work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# jsonschema, below nbformat, would build the grammar of a kind of address for a second, which no notebook needs.
sys.modules.setdefault("rfc3987_syntax", None)
