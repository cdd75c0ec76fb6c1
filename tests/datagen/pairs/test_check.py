"""Pairs are read from their files: each is registered, or left out with its reason."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datagen.dataset.records import Registration
from datagen.pairs.check import PairChecker
from datagen.photos.source_file import Rejection, SourceFile
from datagen.settings import FilterSettings, ImageSettings
from tests.support.pair_pictures import scene_picture
from tests.support.picture_files import saved


def test_each_pair_is_registered_or_left_out_with_its_reason(tmp_path: Path) -> None:
    def file(name: str, content: np.ndarray | bytes) -> SourceFile:
        data = content if isinstance(content, bytes) else saved(Image.fromarray(content))
        (tmp_path / name).write_bytes(data)
        return SourceFile(str(tmp_path / name), len(data), "stamp")

    hq = file("hq.png", scene_picture(640, 480, scale=1.0, shift=(0, 0)))
    near = scene_picture(160, 120, scale=4.0, shift=(1.5, -0.5))
    far = scene_picture(160, 120, scale=4.0, shift=(6.0, -8.0))
    chunk = [
        (hq, file("near.png", near)),
        (hq, file("far.png", far)),
        (hq, file("tall.png", near[:, :30])),
        (hq, file("broken.png", b"no image")),
        (hq, SourceFile(str(tmp_path / "gone.png"), 1, "stamp")),
    ]
    checker = pickle.loads(pickle.dumps(PairChecker(ImageSettings(), FilterSettings())))
    registered, *others = checker(chunk)
    assert isinstance(registered, Registration)
    assert (registered.shift_x, registered.shift_y) == pytest.approx((1.5, -0.5), abs=0.1)
    assert others == [
        Rejection(hq.uri, "pair off by too much (10.0 pixels)"),
        Rejection(hq.uri, "sides of the pair differ beyond the scale (640x480 and 30x120)"),
        Rejection(hq.uri, f"not an image (LQ {tmp_path}/broken.png)"),
        Rejection(hq.uri, f"missing (LQ {tmp_path}/gone.png)"),
    ]
