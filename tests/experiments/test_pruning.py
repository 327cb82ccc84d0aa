"""Fewer vectors from patches: against slow loops, and the command."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import randomised

from minflextok.experiments.flops import block_flops
from minflextok.experiments.reduction import drop, merge, merge_step, pool


def patches(B=2, P=16, D=5, seed=0):
    return torch.randn(B, P, D, generator=torch.Generator().manual_seed(seed))


def merged_slowly(x, sizes, r):
    """One step on x, a list of N vectors, by the text of the paper: new vectors, sizes, members."""
    N = len(x)
    a, b = list(range(0, N, 2)), list(range(1, N, 2))
    edges = []
    for i in a:
        similarity = [F.cosine_similarity(x[i], x[j], dim=0).item() for j in b]
        best = max(range(len(b)), key=lambda m: similarity[m])
        edges.append((similarity[best], i, b[best]))
    strongest = sorted(edges, key=lambda e: -e[0])[:r]
    groups = {j: [j] for j in b}
    for _, i, j in strongest:
        groups[j].append(i)
    taken = {i for _, i, _ in strongest}
    members = [[i] for i in a if i not in taken] + [groups[j] for j in b]
    new_sizes = [sum(sizes[i] for i in m) for m in members]
    means = [sum(sizes[i] * x[i] for i in m) / s for m, s in zip(members, new_sizes, strict=True)]
    return torch.stack(means), torch.tensor(new_sizes), members


@pytest.mark.parametrize("N, r", [(16, 1), (16, 8), (9, 4), (7, 2)])
def test_a_merge_is_that_of_the_paper(N, r):
    x = patches(3, N)
    sizes = torch.randint(1, 5, (3, N), generator=torch.Generator().manual_seed(1)).float()
    found, new_sizes, went = merge_step(x, sizes, r)
    for i in range(3):
        means, expected_sizes, members = merged_slowly(list(x[i]), sizes[i].tolist(), r)
        torch.testing.assert_close(found[i], means)
        assert torch.equal(new_sizes[i], expected_sizes)
        for place, group in enumerate(members):
            assert went[i, group].tolist() == [place] * len(group)


@pytest.mark.parametrize("n", [1, 3, 8, 15, 16])
def test_merging_keeps_the_total_and_knows_where_each_patch_went(n):
    x = patches()
    found = merge(x, n, r=3)
    assert found.vectors.shape == (2, n, 5) and found.sizes().sum(1).tolist() == [16, 16]
    total = (found.vectors * found.sizes()[..., None]).sum(1)
    torch.testing.assert_close(total, x.sum(1))
    for b in range(2):
        for i in range(n):
            mean = x[b, found.groups[b] == i].mean(0)
            torch.testing.assert_close(found.vectors[b, i], mean)


def test_merging_duplicates_loses_nothing():
    x = patches(P=8).repeat_interleave(2, 1)
    torch.testing.assert_close(merge(x, 8).placed(), x)


@pytest.mark.parametrize("n, cells", [(1, (1, 1)), (2, (2, 1)), (4, (2, 2)), (8, (4, 2))])
def test_pooling_averages_the_cells_of_a_grid(n, cells):
    x = patches()
    found = pool(x, n)
    h, w = 4 // cells[0], 4 // cells[1]
    grid = x.unflatten(1, (4, 4))
    for i in range(n):
        row, column = i // cells[1] * h, i % cells[1] * w
        cell = grid[:, row : row + h, column : column + w].flatten(1, 2)
        torch.testing.assert_close(found.vectors[:, i], cell.mean(1))
    assert found.sizes().tolist() == [[16 // n] * n] * 2
    torch.testing.assert_close(found.placed().mean(1), x.mean(1))
    with pytest.raises(ValueError, match="n=3: no grid of so many equal cells covers 4x4 patches"):
        pool(x, 3)


def test_dropping_keeps_some_patches_as_they_are():
    x = patches()
    few, many = drop(x, 3), drop(x, 10)
    kept = [(found.placed() == x).all(-1) for found in (few, many)]
    assert [k.sum(1).tolist() for k in kept] == [[3, 3], [10, 10]]
    assert not (kept[0] & ~kept[1]).any()
    assert torch.equal(few.vectors, x[:, kept[0][0]])


def test_places_are_means_over_the_patches():
    found = pool(patches(), 4).located()[0]  # rows 0, 0.25, 0.5, 0.75 of a 4x4 grid
    expected = [[0.125, 0.125], [0.125, 0.625], [0.625, 0.125], [0.625, 0.625]]
    torch.testing.assert_close(found[:, 5:7], torch.tensor(expected))
    assert found[:, 7].tolist() == [0.25] * 4


def test_the_command(tmp_path, two_colors, capsys):
    pytest.importorskip("sklearn")
    from minflextok.experiments.pruning import main

    randomised().save_pretrained(tmp_path / "tiny")
    sizes = ["--train-images", "30", "--val-images", "20", "--test-images", "20", "--depth", "2"]
    where = ["--weights", str(tmp_path / "tiny"), "--out", str(tmp_path), "--data", two_colors]
    main([*sizes, "--tokens", "1", "4", *where])
    results = json.loads((tmp_path / "tiny.json").read_text())
    assert len(results["methods"]) == 5
    for rows in results["methods"].values():
        assert list(rows) == ["1", "4"]
        assert rows["4"]["flops after"] == 2 * block_flops(64, 4, 4, 16)
        assert rows["4"]["psnr"]["ci95"][0] < rows["4"]["psnr"]["mean"]
    registers = results["methods"]["registers"]
    assert registers["4"]["flops of the encoder"] > registers["1"]["flops of the encoder"]
    assert results["methods"]["average pooling"]["4"]["linear"]["accuracy"]["mean"] == 1
    assert "| merging | 4 | " in capsys.readouterr().out and (tmp_path / "tiny.png").exists()
    with pytest.raises(SystemExit):
        main(["--help"])
