"""Files are written atomically."""

import pytest

from mmcare.files import write_picture


def test_a_picture_that_cannot_be_drawn_leaves_the_old_one(tmp_path):
    class Failing:
        def savefig(self, path, **settings):
            raise RuntimeError

    (tmp_path / "curve.png").write_bytes(b"old")
    with pytest.raises(RuntimeError):
        write_picture(Failing(), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
