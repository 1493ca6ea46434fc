"""Python reads this when it starts, in the test processes' children: what they import is not searched for garbage.

Imports make objects by the hundred thousand that stay; looking through them costs a quarter of a start, and most of an
end. DuckDB's module, where it is loaded, wants to be collected.
"""

import atexit
import gc
import sys

gc.set_threshold(100_000, 50, 50)
atexit.register(lambda: "duckdb" in sys.modules or gc.freeze())
