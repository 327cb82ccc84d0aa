"""Folders of images: splits, classes, and files that do not belong."""

import os
import re
import warnings
from pathlib import Path

import pytest
from image_files import picture
from PIL import Image

from minflextok.data import IMG_EXTENSIONS, Folder, find_images, load_dataset
from minflextok.data.images import OTHER_EXTENSIONS


def test_folders(tmp_path):
    for i in range(3):
        picture(tmp_path / "set/train/cat" / f"{i}.png", (12 + i, 10))
        picture(tmp_path / "set/val/cat" / f"{i}.jpg")
        picture(tmp_path / "flat" / f"{i}.png")
    (tmp_path / "set/train/cat/broken.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"broken.png|1 unreadable images skipped, 3 read"):
        train = load_dataset(tmp_path / "set", "train", image_size=8)
    assert (
        train.images.shape == (3, 3, 8, 8)
        and train.classes == ["cat"]
        and train.labels.tolist() == [0, 0, 0]
    )
    assert load_dataset(tmp_path / "set", "test", image_size=8).classes == ["cat"]
    assert load_dataset(tmp_path / "flat").labels is None
    with pytest.raises(ValueError, match=r"1.png is 10x13, others 10x12: give an image_size"):
        load_dataset(tmp_path / "set", "train")
    with pytest.raises(FileNotFoundError, match="no folder test or val"):
        load_dataset(tmp_path / "flat", "test")


def test_bad_sets_are_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/notes.txt").write_text("x")
    (tmp_path / "rotten").mkdir()
    (tmp_path / "rotten/a.png").write_bytes(b"")
    (tmp_path / "hollow/cat").mkdir(parents=True)
    picture(tmp_path / "hollow/dog/1.png")
    picture(tmp_path / "mixed/cat/1.png")
    picture(tmp_path / "mixed/2.png")
    for name, match in [
        ("empty", "holds no images"),
        ("text", "holds no images"),
        ("hollow", "cat"),
        ("mixed", "2.png"),
    ]:
        with pytest.raises(ValueError, match=match):
            load_dataset(tmp_path / name)
    with (
        pytest.warns(UserWarning, match="a.png"),
        pytest.raises(ValueError, match="no readable image"),
    ):
        load_dataset(tmp_path / "rotten")
    with pytest.raises(FileNotFoundError, match="no data set 'nonsense': give shapes"):
        load_dataset("nonsense")
    with pytest.raises(ValueError, match="split='valid'"):
        load_dataset("shapes", "valid")


def test_hidden_folders_do_not_shift_the_labels(tmp_path):
    for name in (".thumbs", "cat", "dog"):
        picture(tmp_path / name / "1.png")
    data = load_dataset(tmp_path)
    assert data.classes == ["cat", "dog"] and data.labels.tolist() == [0, 1]


# ---- splits --------------------------------------------------------------------------------------


def make(root, *folders):
    for i, folder in enumerate(folders):
        picture(root / folder / f"{i}.png", (8, 8), (i, 0, 0))
    return root


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING", "training"])
@pytest.mark.parametrize("test", ["test", "Testing", "VAL", "valid", "Validation"])
def test_splits_by_any_known_spelling(tmp_path, train, test):
    make(tmp_path, f"{train}/cat", f"{train}/dog", f"{test}/cat", f"{test}/dog", f"{test}/dog")
    learn, measured = load_dataset(tmp_path), load_dataset(tmp_path, "test")
    assert (learn.split, len(learn), learn.classes) == ("train", 2, ["cat", "dog"])
    assert (measured.split, len(measured), measured.classes) == ("test", 3, ["cat", "dog"])


def test_test_comes_before_validation_and_flat_splits_work(tmp_path):
    make(tmp_path, "train", "test", "val", "val")
    assert len(load_dataset(tmp_path, "test")) == 1
    assert load_dataset(f"{tmp_path}/{{split}}", "test").name == str(tmp_path / "test")


@pytest.mark.parametrize(
    "folders, split, match",
    [
        (["val/cat"], "train", "has no folder train: it has val"),
        (["train/cat"], "test", "has no folder test: it has train"),
        (["Train/cat", "training/cat", "test/cat"], "train", "Train and training"),
        (["train2017/cat", "val2017/cat"], "train", "train2017 looks like a split"),
        (["train/cat", "test_images/cat"], "train", "test_images looks like a split"),
        (["train/cat", "dev/cat"], "test", "dev looks like a split"),
        (["images-train/cat", "images-test/cat"], "train", "looks like a split"),
        (["TrainSet/cat", "TestSet/cat"], "train", "looks like a split"),
        (["train/1", "cat/1", "dog/1"], "train", "train, which is the name of a split, beside cat"),
        (["data/train/cat", "data/test/cat"], "train", "looks like a split inside of"),
        (["cat/train", "cat/test", "dog/train"], "train", "test looks like a split inside of"),
        (["train/cat", "test/cat", "test/cow"], "test", "has class cow, which the training split"),
    ],
)
def test_folders_that_cannot_be_placed_are_named(tmp_path, folders, split, match):
    make(tmp_path, *folders)
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        load_dataset(tmp_path, split)


def test_classes_may_have_names_that_begin_like_splits(tmp_path):
    make(tmp_path, "bullet_train", "valley", "test_tube", "trainer")
    assert len(load_dataset(tmp_path).classes) == 4


def test_folders_beside_both_splits_are_named_and_not_read(tmp_path):
    make(tmp_path, "train/cat", "test/cat", "extra/cat")
    with pytest.warns(UserWarning, match="not read, beside the splits: extra"):
        assert len(load_dataset(tmp_path)) == 1


def test_a_split_without_a_class_keeps_the_numbers_of_training(tmp_path):
    make(tmp_path, "train/ant", "train/bee", "train/cow", "test/ant", "test/cow")
    for name in (tmp_path, f"{tmp_path}/{{split}}"):
        test = load_dataset(name, "test")
        assert test.classes == ["ant", "bee", "cow"] and test.labels.tolist() == [0, 2]


# ---- litter --------------------------------------------------------------------------------------


def test_litter_is_no_class_and_no_image(tmp_path):
    make(tmp_path, "cat", "dog", "__MACOSX/cat", ".ipynb_checkpoints", "cat/.ipynb_checkpoints")
    make(tmp_path, "@eaDir", "dog/__MACOSX")
    (tmp_path / "cat/._0.png").write_bytes(b"Mac OS X resource fork")
    (tmp_path / "cat/.DS_Store").write_bytes(b"")
    (tmp_path / "dog/Thumbs.db").write_bytes(b"")
    data = load_dataset(tmp_path)
    assert data.classes == ["cat", "dog"] and data.labels.tolist() == [0, 1]
    assert len(find_images(tmp_path)) == 2


def link(path, target):
    try:
        os.symlink(target, path, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        pytest.skip("no links here")


@pytest.mark.parametrize("where", ["self", "cat/up", "cat/here"])
def test_links_to_parent_folders_give_no_copies(tmp_path, where):
    make(tmp_path, "cat", "dog")
    link(tmp_path / where, tmp_path if where != "cat/here" else tmp_path / "cat")
    data = load_dataset(tmp_path)
    assert data.classes == ["cat", "dog"] and len(data) == 2 and len(find_images(tmp_path)) == 2


@pytest.mark.parametrize("where, target", [("dog", "cat"), ("dog/more", "cat"), ("dog/x", "cat/x")])
def test_a_link_to_another_class_is_an_error(tmp_path, where, target):
    for name in ("cat", "cat/x", "eel"):
        picture(tmp_path / name / "1.png")
    if where != "dog":
        picture(tmp_path / "dog/1.png")
    link(tmp_path / where, tmp_path / target)
    with pytest.raises(ValueError, match="dog.* class cat"):
        load_dataset(tmp_path)


def test_links_to_other_folders_are_followed_once(tmp_path):
    make(tmp_path / "store", "a", "b")
    make(tmp_path / "set", "cat")
    link(tmp_path / "set/cat/more", tmp_path / "store/a")
    link(tmp_path / "set/cat/again", tmp_path / "store/a")
    link(tmp_path / "set/dog", tmp_path / "store/b")
    data = load_dataset(tmp_path / "set")
    assert data.classes == ["cat", "dog"] and data.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("suffix", [e for e in IMG_EXTENSIONS if e not in (".heic", ".heif")])
def test_every_format_that_pillow_reads_is_read(tmp_path, suffix):
    """Of formats that Pillow does not write, and with suffixes of others, the bytes are PNG."""
    picture(tmp_path / "a.png", (16, 16))
    name = tmp_path / f"b{suffix.upper()}"
    kind = Image.registered_extensions()[suffix]
    try:
        Image.new("RGB", (16, 16)).save(name, kind)
    except (KeyError, OSError):
        picture(tmp_path / "c.png", (16, 16)).rename(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_dataset(tmp_path, image_size=8)) == 2
    assert len(find_images(tmp_path)) == 2


def test_common_formats_are_among_them():
    assert {".gif", ".jfif", ".jp2", ".tga", ".psd", ".bmp", ".webp"} <= {*IMG_EXTENSIONS}
    assert {".svg", ".eps", ".cr2"} <= {*OTHER_EXTENSIONS}


@pytest.mark.parametrize("flat", [True, False])
def test_files_that_are_not_read_are_counted_and_named(tmp_path, flat):
    folder = tmp_path if flat else tmp_path / "cat"
    make(folder, "")
    for name in ("photo.SVG", "notes.txt", "more.txt", "no_suffix", "Thumbs.db", ".hidden"):
        (folder / name).write_bytes(b"x")
    if not flat:
        (tmp_path / "top.txt").write_bytes(b"x")
    count = "4 files .*2 .txt" if flat else "5 files .*3 .txt"
    with pytest.warns(UserWarning, match=rf"{count}.*1 no suffix.*1 .svg.*photo.SVG.*convert"):
        assert len(load_dataset(tmp_path)) == 1


def test_images_beside_the_splits_are_named(tmp_path):
    make(tmp_path, "train/cat", "test/cat", "")
    with pytest.warns(UserWarning, match="beside the splits: 1 images, such as 2.png"):
        assert len(load_dataset(tmp_path)) == 1


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    make(tmp_path, "cat", "dog")
    real = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(OSError, match="cannot list .*dog.*Permission denied"):
        load_dataset(tmp_path)


# ---- unreadable files ----------------------------------------------------------------------------


def test_a_substitute_for_an_unreadable_file_has_its_class(tmp_path, monkeypatch):
    for name, red in (("ant", 10), ("bee", 90), ("cow", 170)):
        for i in range(3):
            picture(tmp_path / name / f"{i}.png", (8, 8), (red, 0, 0))
    (tmp_path / "ant/2.png").write_bytes(b"broken")  # the next file is a bee
    monkeypatch.setattr("minflextok.data.load.IN_MEMORY_BYTES", 100)
    data = load_dataset(tmp_path, image_size=8, workers=0)
    assert isinstance(data, Folder)
    with pytest.warns(UserWarning, match="2.png"):
        for x, labels in data.in_order(4):
            assert x[:, 0, 0, 0].tolist() == [[10, 90, 170][k] for k in labels]
    for i in range(2):
        (tmp_path / f"ant/{i}.png").write_bytes(b"broken")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no image of class ant"):
        data[0]


# ---- docs ----------------------------------------------------------------------------------------


def test_each_row_of_the_table_in_the_docs_is_a_test():
    root = Path(__file__).parents[2]
    named = re.findall(r"\| `(test_\w+)` \|$", (root / "docs/data.md").read_text(), re.MULTILINE)
    code = "".join(f.read_text(encoding="utf-8") for f in (root / "tests").glob("*/test_*.py"))
    assert len(named) > 20 and [name for name in named if f"def {name}(" not in code] == []
