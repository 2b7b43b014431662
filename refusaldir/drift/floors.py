"""Changes so small that two runs on one model may differ by them: batching, hardware, rounding.

What lies below is never called drift, whatever its interval.
"""

import math

#: Of a cosine from 1; 0.26 degrees.
FLOOR_COSINE = 1e-5

#: Of a norm ratio from 1.
FLOOR_NORM = 1e-3

#: Of a shift, or a change of d′, in SDs.
FLOOR_SD = 0.01

#: Of a direction, as a share of its length: both of the first two at once.
FLOOR_SIZE = math.sqrt(2 * FLOOR_COSINE + FLOOR_NORM**2)
