"""Published weights come from their address once, and a local pickle is never opened."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import training.elir.public_files
from datagen.errors import FlowmapsrError
from datagen.samples.weights import read_weights
from tests.training.elir.small_networks import small_networks
from training.elir.public_files import public_file
from training.elir.public_names import load_public, public_state


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is served where the release would be; downloads are kept elsewhere."""
    folder = tmp_path / "release"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/elir_{{}}.pth"
        monkeypatch.setattr(training.elir.public_files, "URL", address)
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
        yield folder
        server.shutdown()


def test_weights_are_downloaded_once_and_kept_as_safetensors(release: Path) -> None:
    theirs, ours = small_networks(), small_networks(seed=1)
    state = {name: tensor.float() for name, tensor in public_state(theirs).items()}
    torch.save(state, release / "elir_bfr.pth")
    kept = public_file("elir:bfr")
    assert kept.suffix == ".safetensors"
    load_public(ours, read_weights(kept))
    assert all(torch.equal(t.float(), state[name]) for name, t in public_state(ours).items())
    (release / "elir_bfr.pth").unlink()
    assert public_file("elir:bfr") == kept


def test_a_failed_download_names_the_address_and_the_way_round(release: Path) -> None:
    with pytest.raises(FlowmapsrError, match=r"elir_sr.pth could not be downloaded .* as .*\.safe"):
        public_file("elir:sr")
    assert not list(release.parent.rglob("*.safetensors"))


def test_a_local_pickle_is_refused_with_how_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "elir_bfr.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(FlowmapsrError, match=r"a pickle can run code: .*save_file\(torch\.load"):
        read_weights(path)
