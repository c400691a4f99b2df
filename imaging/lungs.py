"""Body, airway and lung masks by thresholds and morphology."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Lungs:
    """Masks on the volume's grid. `left` and `right` are the patient's; the central airways belong to neither.

    What is dense inside a lung (consolidation, effusion, mass) may be missing from it: it is the aerated lung
    with its vessels and small nodules closed.
    """

    body: Mask
    airways: Mask
    left: Mask
    right: Mask
