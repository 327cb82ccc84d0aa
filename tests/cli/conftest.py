import pytest
from conftest import randomised
from PIL import Image

from minflextok.data import load_dataset


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    randomised().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(load_dataset("cifar10-sample", "test").images[:3]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((40, 30 + i)).save(
            folder / f"{i}.png"
        )
    return folder
