import pytest
from image_files import picture


@pytest.fixture
def two_colors(tmp_path):
    """A folder of 8x8 images of two classes, red and blue: 60 for training, 20 for tests."""
    for split, n in (("train", 30), ("test", 10)):
        for i in range(n):
            picture(tmp_path / f"data/{split}/red/{i}.png", (8, 8), (200 + i, 30, 40 + 5 * i))
            picture(tmp_path / f"data/{split}/blue/{i}.png", (8, 8), (20, 30 + 5 * i, 200))
    return str(tmp_path / "data")
