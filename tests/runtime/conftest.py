import pytest
from exported_files import certificate, doubling

from mmcare import runtime


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a model with a certificate, by default the two above, and returns the path."""

    def write(model=None, made=None, name="small.onnx"):
        model = model or doubling()
        files = runtime.attach_certificate(made or certificate(), {name: model.SerializeToString()}, name)
        for file, content in files.items():
            (tmp_path / file).write_bytes(content)
        return tmp_path / name

    return write


@pytest.fixture
def refused():
    """Return a function that opens a file, which must be refused, and returns the message."""

    def refused(path, **options):
        with pytest.raises(runtime.FileError) as caught:
            runtime.open_file(path, **options)
        message = str(caught.value)
        assert "\n" not in message and len(message) < 500
        return message

    return refused
