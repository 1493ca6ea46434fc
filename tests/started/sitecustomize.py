"""Python reads this when it starts, in the test processes' children: what they import is not searched for garbage.

Imports make objects by the hundred thousand that stay; looking through them costs a quarter of a start, and most of an
end.
"""

import atexit
import gc

gc.set_threshold(100_000, 50, 50)
atexit.register(gc.freeze)
