"""The batch pipeline between a corpus of image shards and a folder of Parquet answers."""

import os

# Read by torch when it first allocates: the large temporary tensors of a prefill on a CPU then lie on huge pages, where
# the kernel offers them on request; on small ones, faulting them in takes longer than what is computed with them.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
