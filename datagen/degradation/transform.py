"""The degradation as a transform of albumentations, for trainings that are not ours.

import albumentations as A
from datagen.degradation.transform import FlowMapDegradation

pair = A.Compose([A.RandomCrop(256, 256), FlowMapDegradation(scale=(2, 4))], seed=0)
lq, hq = (pair(image=photo, mask=photo)[name] for name in ("image", "mask"))
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Without this, importing albumentations asks the network for its newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from albumentations.core.transforms_interface import DualTransform  # noqa: E402

from datagen.degradation.apply import degrade  # noqa: E402
from datagen.degradation.draw import draw_degradation  # noqa: E402
from datagen.degradation.noise import rounded  # noqa: E402
from datagen.degradation.parameters import DegradationParams  # noqa: E402
from datagen.degradation.settings import DegradationSettings  # noqa: E402


class FlowMapDegradation(DualTransform):
    """Makes an HQ image its LQ at the same size, with all parameters drawn anew for each image.

    Images are RGB (H, W, 3), uint8 or float32 in [0, 1], and keep their type. Masks, boxes and
    keypoints stay as they are, so that `mask=photo` gives the HQ beside the LQ. A replay holds what
    was drawn, as `meta.json` of a dataset does.
    """

    def __init__(
        self,
        p: float = 1.0,
        scale: tuple[float, float] = (1.0, 16.0),
        chain: Sequence[Mapping[str, Any]] | None = None,
        scale_law: str = "uniform",
    ) -> None:
        """
        Args:
            p: probability that an image is degraded.
            scale: bounds of the factor by which it is made smaller on the way.
            chain: operations as in a recipe's `degradation.operations`; those of FlowMapSR if None.
            scale_law: as a recipe's `degradation.scale_law`.

        Raises:
            ValueError: settings that a recipe would not take either; the text names the field.
        """
        super().__init__(p=p)
        given = {} if chain is None else {"operations": list(chain)}
        settings = DegradationSettings.model_validate(
            {"scale": scale, "scale_law": scale_law, **given}
        )
        # Keys in order, as YAML files have them: the order of a blur's shapes decides its draws.
        ordered = json.dumps(settings.model_dump(mode="json"), sort_keys=True)
        self.settings = DegradationSettings.model_validate_json(ordered)

    def get_params(self) -> dict[str, Any]:
        """What the next image is degraded with: plain values, which a replay can write as JSON."""
        return {"drawn": draw_degradation(self.settings, self.random_generator).model_dump()}

    def apply(self, img: np.ndarray, drawn: dict[str, Any], **params: Any) -> np.ndarray:
        """The LQ. Raises `ValueError` for images of another shape or type."""
        if img.ndim != 3 or img.shape[2] != 3 or img.dtype not in (np.uint8, np.float32):
            raise ValueError(
                f"FlowMapDegradation takes RGB images (H, W, 3) of uint8 or float32, not "
                f"{img.shape} of {img.dtype}"
            )
        lq = degrade(img, DegradationParams.model_validate(drawn))
        return rounded(lq * np.float32(255)) if img.dtype == np.uint8 else lq

    def apply_to_mask(self, mask: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        return mask

    def apply_to_bboxes(self, bboxes: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        return bboxes

    def apply_to_keypoints(self, keypoints: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        return keypoints

    def get_transform_init_args(self) -> dict[str, Any]:
        """What `to_dict` writes and the constructor takes."""
        settings = self.settings.model_dump(mode="json")
        return {
            "scale": settings["scale"],
            "chain": settings["operations"],
            "scale_law": settings["scale_law"],
        }
