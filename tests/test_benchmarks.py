"""The benchmarks: how they compare and count, and the page that is written from what they found."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tinlab.data.pack import Pack
from tinlab.errors import TinlabError
from tinlab.recipe import changed
from tinlab.training import statistics

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import measuring  # noqa: E402
import performance  # noqa: E402
import profile_step  # noqa: E402
import race  # noqa: E402
import scaling  # noqa: E402
import table  # noqa: E402

WHERE = {"hardware": "a machine", "versions": "torch 9", "commit": "abc", "date": "2026-01-01"}


def test_ratios_are_those_of_medians_and_their_spread_is_that_of_rounds():
    row = measuring.compare("x", [1.0, 2.0, 6.0], [4.0, 5.0, 6.0], "s", "a peer")
    assert (row.ours, row.peer, row.ratio, row.rounds) == (2.0, 5.0, 0.4, 3)
    assert row.spread == (0.25, 1.0)
    assert "0.40  0.25 to 1.00" in measuring.table([row])


def test_rows_are_read_as_they_are_printed(capsys):
    row = measuring.compare("x", [1.0], [3.0], "s", "a peer")
    measuring.report([row], "", as_json=True)
    printed = capsys.readouterr().out
    assert measuring.rows_from(printed) == [row]
    without = [{k: v for k, v in json.loads(printed)[0].items() if k != "spread"}]
    assert measuring.rows_from(json.dumps(without))[0].spread is None
    for rubbish in ("", "3", '[{"what": "x"}]'):
        with pytest.raises(ValueError, match=r".+"):
            measuring.rows_from(rubbish)


def line(part, what="x", **values):
    numbers = {"ours": 1.0, "peer": 2.0, "unit": "s", "ratio": 0.5, "spread": "0.40 to 0.60", "rounds": 3}
    return table.Line(
        part=part, what=what, **{**numbers, "peer_name": "a peer", "data": "", **WHERE, **values}
    )


def test_files_are_read_as_they_are_written_and_others_refused(tmp_path):
    path = tmp_path / "bench.csv"
    assert measuring.read_csv(path, table.Line) == []
    measuring.write_csv(path, [line("step"), line("loop", "with, a comma")], table.Line)
    assert measuring.read_csv(path, table.Line) == [line("step"), line("loop", "with, a comma")]
    with pytest.raises(TinlabError, match=r"bench\.csv has other columns"):
        measuring.read_csv(path, race.Point)


def test_a_part_that_is_measured_anew_replaces_its_rows():
    old = [line("loop", "old"), line("packing"), line("no such part any more")]
    assert table.merged(old, [line("loop", "new"), line("input")]) == [
        line("packing"), line("input"), line("loop", "new"),
    ]  # fmt: skip


def test_every_part_is_a_script():
    assert [part.script for part in table.PARTS.values() if not (table.HERE / part.script).is_file()] == []


@pytest.fixture
def forms(shapes_folder, tmp_path):
    return measuring.forms_of(shapes_folder, tmp_path)


@pytest.mark.parametrize(
    ("script", "limit_seconds", "said"),
    [
        ("import time; time.sleep(60)", 1, "its limit"),
        ("import sys; sys.exit('no luck')", 60, "no luck"),
        ("print('[3]')", 60, "no list of rows"),
    ],
)
def test_a_part_that_fails_says_so_in_time(forms, tmp_path, monkeypatch, script, limit_seconds, said):
    (tmp_path / "part.py").write_text(script)
    monkeypatch.setattr(table, "HERE", tmp_path)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=said):
        table.measured(table.Part("part.py", "", "", limit_seconds), forms, tmp_path, quick=False)
    assert time.monotonic() - began < 30


def test_the_peers_see_the_images_and_labels_of_the_pack(forms, shapes_folder):
    split = Pack.open(forms.pack).split("val")
    ids = [c.id for c in split.pack.info.classes]
    shown = {path.name: path.parent.name for path in forms.val.glob("*/*")}
    names = json.loads((forms.pack / "val.names.json").read_text())
    assert shown == {Path(n).name: ids[label] for n, label in zip(names, split.labels, strict=True)}
    assert all(path.resolve().is_file() for path in forms.val.glob("*/*"))
    assert forms.train == shapes_folder / "train"
    assert forms.rendered


def test_a_prepared_folder_is_taken_as_it_is(forms, tmp_path):
    assert measuring.forms_of(tmp_path, tmp_path / "elsewhere") == forms
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(TinlabError, match="is a pack"):
        measuring.forms_of(forms.pack, tmp_path / "elsewhere")


def test_rendered_images_leave_the_projects_results_alone(forms, tmp_path, capsys):
    ours, own = ROOT / "results" / "bench.csv", tmp_path / "own.csv"
    assert measuring.kept_in(None, ours, forms) is None
    assert "bench.csv stays as it is" in capsys.readouterr().err
    assert measuring.kept_in(own, ours, forms) == own
    real = measuring.Forms(forms.source, False, forms.train, forms.val, forms.pack)
    assert measuring.kept_in(None, ours, real) == ours


def test_a_zip_is_unpacked_for_the_peers(shapes_folder, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "set"), "zip", shapes_folder.parent, shapes_folder.name)
    forms = measuring.forms_of(archive, tmp_path / "forms")
    assert len(list(forms.train.rglob("*.JPEG"))) == len(list((shapes_folder / "train").rglob("*.JPEG")))
    assert len(list(forms.val.glob("*/*"))) == len(Pack.open(forms.pack).split("val"))


def test_the_peer_goes_on_where_it_stopped():
    import torch
    from peer import shuffled

    images = torch.utils.data.TensorDataset(torch.arange(11), torch.arange(11))
    whole = [x.tolist() for (x, _), _ in zip(shuffled(images, 2, 0), range(12), strict=False)]
    assert np.unique(np.concatenate(whole[:5])).size == 10  # a pass shows no image twice
    assert whole[:5] != whole[5:10]
    later = [x.tolist() for (x, _), _ in zip(shuffled(images, 2, 0, 7), range(5), strict=False)]
    assert later == whole[7:]


def test_the_exponent_is_the_slope_in_logarithms():
    points = [(32, 3.0), (48, 5.5), (64, 13.0)]
    logs = np.log(np.array(points))
    assert scaling.exponent(points) == pytest.approx(np.polyfit(logs[:, 0], logs[:, 1], 1)[0], rel=1e-9)
    assert scaling.exponent([(1, 5.0), (10, 5.0)]) == 0


def test_a_step_is_shared_out_whole(shapes_pack, tiny_recipe):
    recipe = changed(tiny_recipe, ["data.image_sizes=[16]", "schedule.batch_size=8"])
    found = profile_step.profile(recipe.model_dump(mode="json"), shapes_pack.path, 2)
    taken = found["microseconds_a_step"]
    assert set(taken) == set(profile_step.SHARES)
    assert min(taken.values()) > 0
    seconds = 8 / found["profiled_images_per_second"]
    assert sum(taken.values()) == pytest.approx(1e6 * seconds, rel=0.05)
    shares = profile_step.shares("tiny", found, "")
    assert sum(share.percent for share in shares) == pytest.approx(100, abs=0.1)


def test_operations_are_counted_for_what_they_are_part_of():
    share_of, backward = profile_step.share_of, profile_step.BACKWARD
    assert share_of("aten::copy_", ["aten::mkldnn_convolution", "aten::conv2d"]) == "convolutions, forward"
    inside = ["ConvolutionBackward0", f"{backward}: ConvolutionBackward0"]
    assert share_of("aten::convolution_backward", inside) == "convolutions, backward"
    inside = [f"{backward}: _ConvolutionByMatricesBackward"]
    assert share_of("aten::mm", inside) == "convolutions, backward"
    assert share_of("aten::_to_copy", ["aten::to", "tinlab::augmentation"]) == "augmentation"
    assert share_of("aten::_fused_sgd_", ["Optimizer.step#SGD.step"]) == "optimizer"
    assert share_of("aten::sum", []) == "loss and metrics"
    assert share_of("aten::sum", ["aten::mean"]).startswith("activations")


POINT = {"data": "rendered images", **WHERE}


def points():
    ours = [
        race.Point("tinlab, x", 5.0 * n, top1, n, **POINT) for n, top1 in ((1, 40.0), (2, 56.4), (3, 66.0))
    ]
    other = race.PEERS["best"]
    return [*ours, *(race.Point(other, 5.1 * n, top1, n, **POINT) for n, top1 in ((1, 30.0), (3, 52.0)))]


def test_a_mark_is_reached_by_the_first_point_at_or_above_it():
    assert [race.minutes_to(points(), "tinlab, x", mark) for mark in (40.0, 40.1, 66.1)] == [5.0, 10.0, None]


def raced(out, monkeypatch, speeds, turns):
    """A race of sides that make so many minutes a turn; None ends the process in that turn."""
    stood = dict.fromkeys(speeds, 0.0)

    def child(script, *words):
        side = words[words.index("--turn") + 1] if script.name == "race.py" else "best"
        turn = turns.pop(0)
        if turn is None:
            sys.exit("killed")
        stood[side] += speeds[side]
        step = int(10 * stood[side])
        found = {"seconds": 60 * stood[side], "step": step, "epochs": step / 7, "top1_percent": stood[side]}
        return found | ({} if side == "best" else {"finished": step >= 60})

    monkeypatch.setattr(measuring, "child", child)
    plan = race.Plan({side: {} for side in speeds if side != "best"}, 0, 6.0, 2.0, {"best": 60})
    (out / "forms").mkdir(parents=True, exist_ok=True)
    forms = measuring.Forms(out, True, out / "train", out / "val", out / "pack")
    return lambda: race.raced(out, plan, forms)


def test_sides_take_turns_until_all_have_ended(tmp_path, monkeypatch):
    found = raced(tmp_path, monkeypatch, {"x": 2.0, "best": 3.0}, [1] * 9)()
    assert [(p.side == "tinlab, x", p.minutes) for p in found] == [
        (True, 2.0), (False, 3.0), (True, 4.0), (False, 6.0), (True, 6.0),
    ]  # fmt: skip
    assert measuring.read_csv(tmp_path / "race.csv", race.Point) == found
    assert (tmp_path / "race.png").read_bytes()[:4] == b"\x89PNG"


def test_several_recipes_race_at_once(tmp_path, monkeypatch):
    found = raced(tmp_path, monkeypatch, {"x": 2.0, "y": 4.0, "best": 6.0}, [1] * 9)()
    assert [(p.side.removeprefix("tinlab, ")[0], p.minutes) for p in found] == [
        ("x", 2.0), ("y", 4.0), ("p", 6.0), ("x", 4.0), ("x", 6.0), ("y", 8.0),
    ]  # fmt: skip
    assert (tmp_path / "race.png").read_bytes()[:4] == b"\x89PNG"


def test_a_race_goes_on_after_it_was_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(race, "draw", lambda *_: None)
    run = raced(tmp_path, monkeypatch, {"x": 2.0, "best": 3.0}, [1, 1, None, *[1] * 9])
    with pytest.raises(SystemExit):
        run()
    assert [p.minutes for p in run()] == [2.0, 3.0, 4.0, 6.0, 6.0]


def test_own_turns_add_up_to_the_whole_training(shapes_pack, shapes_folder, tiny_recipe, tmp_path):
    forms = measuring.forms_of(shapes_folder, tmp_path / "forms")
    recipe = changed(tiny_recipe, ["data.train_split=train+tune"])
    plan = race.Plan({"tiny": recipe.model_dump(mode="json")}, 0, 1.0, 1.0, {})
    (tmp_path / "plan.json").write_text(json.dumps(vars(plan)))
    first = race.own_turn(tmp_path, "tiny", 0)
    assert 0 < first["step"] < 12
    assert not first["finished"]
    last = race.own_turn(tmp_path, "tiny", 60)
    assert (last["step"], last["finished"]) == (12, True)
    assert last["epochs"] == pytest.approx(12 * 16 / len(Pack.open(forms.pack).split("train+tune")))
    assert last["seconds"] > first["seconds"]
    assert race.own_turn(tmp_path, "tiny", 60) == last


def test_a_turn_is_measured_with_the_statistics_that_the_end_is(
    shapes_folder, tiny_recipe, tmp_path, monkeypatch
):
    taken = []

    def watched(model, names, seen, split, rows, *how):
        before = [model.get_submodule(name).running_mean.clone() for name in names]
        statistics_taken(model, names, seen, split, rows, *how)
        moved = [
            not torch.equal(model.get_submodule(name).running_mean, mean)
            for name, mean in zip(names, before, strict=True)
        ]
        taken.append((len(rows), seen.network_size, len(moved), all(moved), model.training))

    statistics_taken = statistics.take_anew
    monkeypatch.setattr(statistics, "take_anew", watched)
    measuring.forms_of(shapes_folder, tmp_path / "forms")
    recipe = changed(
        tiny_recipe, ["data.train_split=train+tune", "data.precise_bn_images=12", "data.measured_size=48"]
    )
    plan = race.Plan({"tiny": recipe.model_dump(mode="json")}, 0, 1.0, 1.0, {})
    (tmp_path / "plan.json").write_text(json.dumps(vars(plan)))
    assert not race.own_turn(tmp_path, "tiny", 0)["finished"]
    assert race.own_turn(tmp_path, "tiny", 60)["finished"]
    assert taken == [(12, 48, 20, True, False)] * 2


def written(folder):
    """Files of all benchmarks."""
    measuring.write_csv(folder / "bench.csv", [line("step", "ResNet-18 step")], table.Line)
    shares = [
        profile_step.Share("a network", what, 100 / 11, 1.0, 200.0, 190.0, "x.zip", **WHERE)
        for what in profile_step.SHARES
    ]
    measuring.write_csv(folder / "profile.csv", shares, profile_step.Share)
    values = {
        ("pixels", 32): {"step_milliseconds": 100, "memory_mib": 50, "images_per_second": 1280},
        ("pixels", 64): {"step_milliseconds": 400, "memory_mib": 100, "images_per_second": 320},
        ("classes", 200): {"step_milliseconds": 400, "memory_mib": 100, "parameters": 6_400_000},
        ("classes", 1000): {"step_milliseconds": 420, "memory_mib": 110, "parameters": 6_700_000},
        ("images", 1000): {"pack_seconds": 1, "pack_memory_mib": 50, "pack_mib": 12, "batch_milliseconds": 1},
        ("images", 4000): {"pack_seconds": 4, "pack_memory_mib": 50, "pack_mib": 48, "batch_milliseconds": 1},
        ("ranks", 1): {"step_milliseconds": 200, "images_per_second": 320, "gradient_bytes": 25_000_000},
        ("ranks", 2): {"step_milliseconds": 250, "images_per_second": 512, "exchange_milliseconds": 20,
                       "gradient_bytes": 25_000_000},
        ("decoding", 64): {"images_per_second": 2000, "jpeg_bytes": 50_000, "stored_bytes": 12_288},
        ("decoding", 224): {"images_per_second": 1000, "jpeg_bytes": 50_000, "stored_bytes": 150_528},
        ("reading", 10000): {"in_order_mb_per_second": 1000, "at_random_mb_per_second": 40},
    }  # fmt: skip
    measures = [
        scaling.Measure(axis, at, measure, float(value), **WHERE)
        for (axis, at), found in values.items()
        for measure, value in found.items()
    ]
    measuring.write_csv(folder / "scaling.csv", measures, scaling.Measure)
    measuring.write_csv(folder / "race.csv", points(), race.Point)


def test_the_page_says_what_the_files_hold(tmp_path):
    written(tmp_path)
    page = performance.page(tmp_path)
    assert max(len(line) for line in page.splitlines() if not line.startswith("|")) <= 116
    text = page.replace("\n", " ")
    assert "Not yet run" not in text
    assert "| ResNet-18 step | 1 s | a peer: 2 s | 0.50 | 0.40 to 0.60 |" in text
    assert "| tinlab, x | 10.0 | 10.0 | 15.0 | 66.00% after 15.0 minutes, 3.0 epochs |" in text
    assert "| optimizer | 9.1% |" in text
    # By hand: four times the pixels cost four times the time; twice the memory.
    assert "| pixels a side | a step of 128 images, ms | 100 at 32, 400 at 64 | 1.00 |" in text
    assert "| pixels a side | memory of the step, MiB | 50 at 32, 100 at 64 | 0.50 |" in text
    assert "| images | memory of packing, MiB | 50 at 1,000, 50 at 4,000 | 0.00 |" in text
    assert "1.60 times as many" in text
    # 1,331,167 images of 150,528 bytes: 200.4 GB, 187 GiB, 22.2 minutes at 1,000 a second, 200 s at 1 GB/s.
    assert "| 150,528 | 200.4 GB | 187 | 22.2 min | 3.3 min |" in text
    # 64 ranks send 2 x 63/64 x 25 MB, and 10 Gbit/s are 1.25 GB/s.
    assert "| 64 | 49.2 MB | 393.8 ms | 39.4 ms | 3.9 ms |" in text
    # 8 ranks: 43.75 MB, 35 ms, beside 200 ms.
    assert "is 17.5% of that" in text


def test_the_chart_of_shares_is_drawn(tmp_path):
    written(tmp_path)
    performance.draw(measuring.read_csv(tmp_path / "profile.csv", profile_step.Share), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_the_projects_page_is_what_its_files_give():
    results, docs = ROOT / "results", ROOT / "docs"
    assert (docs / "performance.md").read_text() == performance.page(results), (
        "run: python benchmarks/performance.py"
    )
    assert (docs / performance.CHART).is_file() == (results / "profile.csv").is_file()
    assert (docs / "race.png").is_file() == (results / "race.csv").is_file()
    for path in results.glob("*.csv"):
        if path.name in ("bench.csv", "profile.csv", "race.csv"):
            assert "rendered images" not in path.read_text(), path
