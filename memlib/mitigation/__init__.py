from typing import Literal

Modification = Literal["drop", "augment", "mask"]  # of training pictures, see `memlib.mitigation.data.modify`
