"""Rate and quality of ids and codecs: one table, one figure."""

import json

from minflextok.experiments import rates


def test_the_command_puts_ids_beside_codecs(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(rates.QUALITIES, "mosaic, 8 px", {"WEBP": (0, 60)})
    sizes = {str(k): {"bytes an image": k + 0.3, "file of one image": k + 40.0} for k in (1, 4, 32)}
    (tmp_path / "sizes.json").write_text(json.dumps({"bytes by ids an image": sizes}))
    sizes_file = ["--sizes", str(tmp_path / "sizes.json")]
    options = [*sizes_file, "--num-images", "12", "--only", "mosaic, 8 px", "--out", str(tmp_path)]
    rates.main(options)
    found = json.loads((tmp_path / "rates.json").read_text())
    assert [row["k"] for row in found["ids"]] == [1, 4, 32]
    assert found["ids"][1]["bytes"] == 4.3 and found["ids"][1]["bytes_single"] == 44
    assert found["ids"][0]["guidance"] == 2 and found["ids_unguided"][0]["guidance"] == 1
    poor, good = found["codecs"]
    assert poor["bytes"] < good["bytes"] and poor["psnr"]["mean"] < good["psnr"]["mean"]
    assert (tmp_path / "rates.png").stat().st_size > 20_000
    capsys.readouterr()
    sizes["4"]["bytes an image"] = 5.0
    (tmp_path / "sizes.json").write_text(json.dumps({"bytes by ids an image": sizes}))
    rates.main(options)  # sizes are read again, codecs are not measured again
    again = json.loads((tmp_path / "rates.json").read_text())
    assert again["ids"][1]["bytes"] == 5 and again["codecs"] == found["codecs"]
    assert capsys.readouterr().out == ""
