"""Files are written atomically."""

import pytest
from helpers import LargestFile

from mmcare.errors import UserError
from mmcare.files import write_folder, write_picture


def test_a_picture_that_cannot_be_drawn_leaves_the_old_one(tmp_path):
    class Failing:
        def savefig(self, path, **settings):
            raise RuntimeError

    (tmp_path / "curve.png").write_bytes(b"old")
    with pytest.raises(RuntimeError):
        write_picture(Failing(), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    folder = tmp_path / "new/page"
    write_folder(folder, {"a.txt": b"first", "data/b.txt": b"second"})
    assert (folder / "data/b.txt").read_bytes() == b"second"
    write_folder(folder, {"c.txt": b"third"})
    assert [path.name for path in folder.iterdir()] == ["c.txt"]
    assert [path.name for path in folder.parent.iterdir()] == ["page"]


@pytest.mark.parametrize("was_there", [False, True])
def test_a_full_disk_leaves_no_folder_or_the_old_one(tmp_path, was_there):
    folder = tmp_path / "page"
    if was_there:
        write_folder(folder, {"a.txt": b"old"})
    with LargestFile(1000), pytest.raises(UserError, match=r"page \(0\.0 MiB\) cannot be written: File too large"):
        write_folder(folder, {"a.txt": b"new", "b.txt": bytes(2000)})
    assert [path.read_bytes() for path in tmp_path.rglob("*.txt")] == [b"old"] * was_there
    assert [path.name for path in tmp_path.iterdir()] == ["page"] * was_there
