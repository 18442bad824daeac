import hashlib
import io
import re
import time
import urllib.error
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tinlab import models, recipe
from tinlab.errors import TinlabError
from tinlab.models import weight_files, weights, zoo
from tinlab.models.network import Network
from tinlab.training import checkpoint

SMALL = {"width": 4, "stem": "patch"}


def network(name):
    return zoo.find(name) if ":" in name else models.find(name)


def drawn(seed=0, classes=5, name="resnet18", **own):
    entry, knobs = network(name), recipe.Model(name=name, **own)
    torch.manual_seed(seed)
    return entry.build(entry.resolve(knobs), classes)


def load(model, path, name="resnet18", fresh_layers=(), **own):
    knobs = recipe.Model(name=name, weights=str(path), fresh_layers=fresh_layers, **own)
    return weights.load_into(model, network(name), knobs)


def copied(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def source():
    """Values as after training: none is what a network draws, buffers included."""
    model = drawn(seed=1, **SMALL)
    torch.manual_seed(2)
    return {
        name: torch.rand_like(value) if value.is_floating_point() else value + 7
        for name, value in model.state_dict().items()
    }


@pytest.fixture(params=["safetensors", "pth", "pt", "bin", "old"])
def file(request, source, tmp_path):
    path = tmp_path / f"weights.{'pth' if request.param == 'old' else request.param}"
    if request.param == "safetensors":
        save_file(source, path)
    else:
        torch.save(source, path, _use_new_zipfile_serialization=request.param != "old")
    return path


def test_a_files_values_are_taken_exactly(file, source):
    model = drawn(**SMALL)
    loaded = load(model, file, **SMALL)
    assert equal(copied(model), source)
    assert loaded == weights.Loaded(
        path=str(file),
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        tensors=len(source),
        classifier_kept_new=False,
        fresh_layers=(),
        fitted=(),
        converted_from=(),
        left_out=(),
    )


def test_torchvisions_resnet_becomes_ours(tmp_path):
    theirs = zoo.import_torchvision().models.resnet18(num_classes=5).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    ours = drawn().eval()
    x = torch.randn(2, 3, 64, 64)
    assert not torch.allclose(ours(x), theirs(x), atol=1e-3)
    load(ours, tmp_path / "resnet18.pth")
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_and_prefixes_are_taken_off(key, prefix, source, tmp_path):
    wrapped = {"epoch": 3, key: {prefix + name: value for name, value in source.items()}, "best": 0.5}
    torch.save(wrapped, tmp_path / "file.pth")
    model = drawn(**SMALL)
    load(model, tmp_path / "file.pth", **SMALL)
    assert equal(copied(model), source)


def test_averaged_weights_go_first(source, tmp_path):
    other = {name: value + 1 for name, value in source.items()}
    torch.save({"state_dict": other, "state_dict_ema": source}, tmp_path / "file.pth")
    model = drawn(**SMALL)
    load(model, tmp_path / "file.pth", **SMALL)
    assert equal(copied(model), source)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_formats_of_numbers_are_converted_and_stated(dtype, source, tmp_path):
    stored = {n: v.to(dtype) if v.is_floating_point() else v for n, v in source.items()}
    save_file(stored, tmp_path / "file.safetensors")
    model = drawn(**SMALL)
    loaded = load(model, tmp_path / "file.safetensors", **SMALL)
    assert loaded.converted_from == (str(dtype).removeprefix("torch."),)
    assert all(value.dtype in (torch.float32, torch.int64) for value in model.state_dict().values())
    assert equal(copied(model), {n: v.float() if v.is_floating_point() else v for n, v in stored.items()})


def test_a_classifier_of_another_size_stays_new(source, tmp_path):
    source["fc.weight"], source["fc.bias"] = torch.rand(1000, 32), torch.rand(1000)
    save_file(source, tmp_path / "file.safetensors")
    model = drawn(**SMALL)
    before = copied(model)
    loaded = load(model, tmp_path / "file.safetensors", **SMALL)
    assert loaded.classifier_kept_new
    assert loaded.tensors == len(source) - 2
    after = copied(model)
    assert all(torch.equal(after[n], (before if n.startswith("fc.") else source)[n]) for n in after)


def test_a_convolution_can_be_the_classifier(tmp_path):
    theirs = zoo.import_torchvision().models.squeezenet1_1(num_classes=1000)
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    name = "torchvision:squeezenet1_1"
    model = drawn(name=name)
    before = copied(model)
    assert load(model, tmp_path / "file.pth", name).classifier_kept_new
    assert torch.equal(model.classifier[1].weight, before["classifier.1.weight"])
    assert torch.equal(model.features[0].weight, theirs.features[0].weight)


def test_auxiliary_classifiers_are_left_out(tmp_path):
    theirs = zoo.import_torchvision().models.googlenet(num_classes=5, aux_logits=True, init_weights=False)
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    name = "torchvision:googlenet"
    model = drawn(name=name)
    loaded = load(model, tmp_path / "file.pth", name)
    assert "aux1.conv.conv.weight" in loaded.left_out
    kept = {n: v for n, v in theirs.state_dict().items() if not n.startswith("aux")}
    assert equal(copied(model), kept)


def test_old_files_do_not_count_batches(source, tmp_path):
    old = {name: value for name, value in source.items() if not name.endswith("num_batches_tracked")}
    save_file(old, tmp_path / "file.safetensors")
    model = drawn(**SMALL)
    assert load(model, tmp_path / "file.safetensors", **SMALL).tensors == len(old)
    assert model.bn1.num_batches_tracked == 0


def test_old_densenets_have_other_names(tmp_path):
    name = "torchvision:densenet121"
    theirs = zoo.import_torchvision().models.densenet121(num_classes=5)
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", place): value
        for place, value in theirs.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "file.pth")
    model = drawn(name=name)
    load(model, tmp_path / "file.pth", name)
    assert equal(copied(model), dict(theirs.state_dict()))


@pytest.mark.parametrize("pattern", ["layer4", "layer4*", "layer4.*.conv?", "layer4.1.bn1.weight"])
def test_fresh_layers_keep_what_was_drawn(pattern, source, tmp_path):
    from fnmatch import fnmatchcase

    save_file(source, tmp_path / "file.safetensors")
    model = drawn(**SMALL)
    before = copied(model)
    loaded = load(model, tmp_path / "file.safetensors", fresh_layers=(pattern,), **SMALL)
    after = copied(model)
    kept = {n for n in after if not torch.equal(after[n], source[n])}
    parts = {n: [".".join(n.split(".")[:end]) for end in range(1, n.count(".") + 2)] for n in after}
    assert kept == {n for n in after if any(fnmatchcase(part, pattern) for part in parts[n])}
    assert all(torch.equal(after[n], before[n]) for n in kept)
    assert loaded.fresh_layers == tuple(sorted({n.rpartition(".")[0] for n in kept}))
    assert loaded.tensors == len(after) - len(kept)


def test_fresh_layers_need_not_be_in_the_file(source, tmp_path):
    partial_file = {n: v for n, v in source.items() if not n.startswith(("fc", "layer4"))}
    partial_file["layer4.9.weight"] = torch.zeros(3)
    save_file(partial_file, tmp_path / "file.safetensors")
    model = drawn(**SMALL)
    loaded = load(model, tmp_path / "file.safetensors", fresh_layers=("fc", "layer4"), **SMALL)
    assert loaded.classifier_kept_new
    with pytest.raises(
        TinlabError, match="fresh_layers: 'layer5' matches no layer with weights; they are called conv1, bn1"
    ):
        load(model, tmp_path / "file.safetensors", fresh_layers=("layer5",), **SMALL)


def _without(source):
    return {n: v for n, v in source.items() if not n.startswith("layer2.0")}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without, r"it lacks layer2.0.conv1.weight, .+ and \d+ more; give a file of this network"),
        (lambda s: {**s, "extra.weight": torch.zeros(1)}, r"the network lacks extra.weight;"),
        (
            lambda s: {**s, "conv1.weight": torch.zeros(4, 3, 7, 7)},
            r"conv1.weight is \(4, 3, 7, 7\) in the file and \(4, 3, 3, 3\) in the network",
        ),
        (
            lambda s: {**s, "conv1.weight": torch.zeros(4, 3, 3, 3, dtype=torch.int64)},
            r"conv1.weight is int64, not float32",
        ),
        (
            lambda s: {**s, "conv1.weight": torch.zeros(4, 3, 3, 3, dtype=torch.complex64)},
            r"conv1.weight is complex64, not float32",
        ),
        (lambda s: {**s, "aux1.weight": torch.zeros(2), "aux.weight": torch.zeros(1)}, r"lacks aux.weight;"),
        (lambda s: {n: v for n, v in s.items() if n != "fc.bias"}, r"it lacks fc.bias;"),
    ],
)
def test_every_other_difference_is_an_error_that_lists_it(change, says, source, tmp_path):
    torch.save(change(source), tmp_path / "file.pth")
    model = drawn(**SMALL)
    before = copied(model)
    with pytest.raises(TinlabError, match=f"file.pth does not fit resnet18: .*{says}"):
        load(model, tmp_path / "file.pth", **SMALL)
    assert equal(copied(model), before)


class Runs:
    """What code in a file would do."""

    def __reduce__(self):
        return (print, ("this code ran",))


@pytest.mark.parametrize("new", [True, False])
def test_a_file_that_needs_code_is_refused(new, tmp_path, source, capsys):
    path = tmp_path / "file.pth"
    torch.save({**source, "other": Runs()}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(
        TinlabError, match=r"file.pth holds Python objects .*print.* save the network's state_dict"
    ):
        load(drawn(**SMALL), path, **SMALL)
    torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=new)  # a whole network
    with pytest.raises(TinlabError, match=r"file.pth holds Python objects .*Linear"):
        load(drawn(**SMALL), path, **SMALL)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_cut_file_is_refused(file, share):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(TinlabError, match=rf"{file.name} is (damaged|no whole .safetensors file)"):
        load(drawn(**SMALL), file, **SMALL)


def test_what_is_no_file_of_tensors_is_refused(tmp_path, source):
    load_from = partial(load, drawn(**SMALL), **SMALL)
    with pytest.raises(TinlabError, match=r"there is no .*nothing.pth; give 'imagenet', a file, or a run"):
        load_from(tmp_path / "nothing.pth")
    with pytest.raises(TinlabError, match=r"is no run with a checkpoint"):
        load_from(tmp_path)
    (tmp_path / "file.npz").write_bytes(b"PK")
    with pytest.raises(TinlabError, match=r"file.npz is of an unknown kind; give a .safetensors"):
        load_from(tmp_path / "file.npz")
    (tmp_path / "page.pth").write_text("<!doctype html><title>404</title>")
    with pytest.raises(TinlabError, match=r"page.pth is damaged, or holds something else"):
        load_from(tmp_path / "page.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(TinlabError, match=r"list.pth holds a list"):
        load_from(tmp_path / "list.pth")
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(TinlabError, match=r"empty.pth holds nothing"):
        load_from(tmp_path / "empty.pth")
    torch.save({"net": source, "epoch": 3}, tmp_path / "net.pth")
    with pytest.raises(TinlabError, match=r"net.pth holds more than tensors by their names \(net, epoch\)"):
        load_from(tmp_path / "net.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(TinlabError, match=r"folder.pth is no run"):
        load_from(tmp_path / "folder.pth")


def test_a_run_gives_its_newest_weights(tmp_path, source):
    trained = drawn(seed=5, **SMALL)
    trained.load_state_dict(source)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    old = checkpoint.save(tmp_path, trained, optimizer, checkpoint.State(step=1))
    (tmp_path / "copy" / "checkpoints").mkdir(parents=True)
    for step, add in ((9, 1), (10, 2)):
        place = tmp_path / "copy" / "checkpoints" / f"step-{step:08d}"
        place.mkdir()
        save_file({n: v + add for n, v in source.items()}, place / "model.safetensors")
    for path, add in ((tmp_path, 0), (old, 0), (tmp_path / "copy", 2), (place, 2)):
        model = drawn(**SMALL)
        loaded = load(model, path, **SMALL)
        assert loaded.path.endswith("model.safetensors")
        assert equal(copied(model), {n: v + add for n, v in source.items()})


# timm


def timm_file(tmp_path, name="test_vit", **arguments):
    theirs = zoo.import_timm().create_model(name, **arguments)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    return theirs


def test_timms_networks_keep_their_own_names(tmp_path):
    theirs = timm_file(tmp_path, "test_resnet")
    model = drawn(name="timm:test_resnet")
    loaded = load(model, tmp_path / "model.safetensors", "timm:test_resnet")
    assert loaded.classifier_kept_new
    assert loaded.fitted == ()
    ours = copied(model)
    assert all(torch.equal(ours[n], v) for n, v in theirs.state_dict().items() if not n.startswith("fc."))


def test_timm_resizes_the_positions_of_patches(tmp_path):
    theirs = timm_file(tmp_path)
    model = drawn(name="timm:test_vit", classes=1000)
    assert theirs.pos_embed.shape != model.pos_embed.shape
    loaded = load(model, tmp_path / "model.safetensors", "timm:test_vit")
    assert not loaded.classifier_kept_new
    assert loaded.fitted == ("pos_embed",)
    theirs.set_input_size((64, 64))  # what timm does to a network in use
    torch.testing.assert_close(model.pos_embed, theirs.pos_embed)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.eval()(x), theirs.eval()(x))


def test_timm_knows_other_forms_of_its_networks(tmp_path):
    theirs = zoo.import_timm().create_model("test_vit", num_classes=5, img_size=64)
    old = dict(theirs.state_dict())
    old["patch_embed.proj.weight"] = old["patch_embed.proj.weight"].flatten(1)  # as a fully connected layer
    torch.save({"model": old}, tmp_path / "file.pth")
    model = drawn(name="timm:test_vit")
    loaded = load(model, tmp_path / "file.pth", "timm:test_vit")
    assert loaded.fitted == ("patch_embed.proj.weight",)
    assert equal(copied(model), dict(theirs.state_dict()))


def test_a_run_on_images_of_another_size_keeps_its_classifier(tmp_path):
    theirs = timm_file(tmp_path, num_classes=5, img_size=96)
    model = drawn(name="timm:test_vit")
    loaded = load(model, tmp_path / "model.safetensors", "timm:test_vit")
    assert (loaded.classifier_kept_new, loaded.fitted) == (False, ("pos_embed",))
    assert torch.equal(model.head.weight, theirs.head.weight)


def test_a_strange_file_does_not_fit_timms_network(tmp_path, source):
    save_file(source, tmp_path / "model.safetensors")
    with pytest.raises(TinlabError, match=r"timm cannot fit .*model.safetensors to timm:test_resnet"):
        load(drawn(name="timm:test_resnet"), tmp_path / "model.safetensors", "timm:test_resnet")


def test_torchvision_resizes_the_positions_of_patches(tmp_path):
    zoo.import_torchvision()
    from torchvision.models.vision_transformer import VisionTransformer

    tiny = partial(VisionTransformer, patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8)
    theirs, model = tiny(image_size=224), tiny(image_size=64, num_classes=5)
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    entry = Network(lambda knobs, classes: model, "", "", "heads.head")
    knobs = recipe.Model(name="torchvision:vit_b_16", weights=str(tmp_path / "file.pth"))
    nn.init.normal_(theirs.encoder.pos_embedding)
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    loaded = weights.load_into(model, entry, knobs, image_size=64)
    assert (loaded.classifier_kept_new, loaded.fitted) == (True, ("encoder.pos_embedding",))
    # The class token's stays; the middle of 4x4 patches lies where that of 14x14 does.
    assert torch.equal(model.encoder.pos_embedding[:, 0], theirs.encoder.pos_embedding[:, 0])
    assert torch.equal(model.conv_proj.weight, theirs.conv_proj.weight)


# Published weights


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's folder, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "torch" / "hub" / "checkpoints"


def url_of(name):
    return zoo.import_torchvision().models.get_model_weights(name).DEFAULT.url


@pytest.mark.parametrize("name", ["resnet18", "torchvision:resnet18"])
def test_imagenets_weights_are_torchvisions(name, hub, monkeypatch):
    theirs = zoo.import_torchvision().models.resnet18()

    def download(url, path, digits, progress):
        assert (url, digits) == (url_of("resnet18"), re.search(r"-(\w+)\.pth", url)[1])
        torch.save(theirs.state_dict(), path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    model = drawn(name=name)
    loaded = load(model, "imagenet", name)
    assert loaded.classifier_kept_new
    assert loaded.path == str(hub / url_of("resnet18").rpartition("/")[2])
    ours = copied(model)
    assert all(torch.equal(ours[n], v) for n, v in theirs.state_dict().items() if not n.startswith("fc."))
    # The next time the file is there, and is not what its name promises.
    with pytest.raises(TinlabError, match=r"is damaged \(its SHA-256 does not begin with \w+\); remove it"):
        load(model, "imagenet", name)


def test_a_file_that_is_there_needs_no_network(hub, monkeypatch):
    theirs = zoo.import_torchvision().models.squeezenet1_1()
    buffer = io.BytesIO()
    torch.save(theirs.state_dict(), buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    hub.mkdir(parents=True)
    (hub / f"weights-{digest[:8]}.pth").write_bytes(buffer.getvalue())
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    assert weight_files._fetched(f"https://example.org/a/weights-{digest[:8]}.pth").is_file()


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError(OSError(-2, "Name or service not known")),
        TimeoutError("timed out"),
        RuntimeError('invalid hash value (expected "f37072fd", got "0")'),
        urllib.error.HTTPError("https://example.org", 404, "Not Found", {}, None),
    ],
)
def test_without_a_network_the_file_and_its_place_are_named(error, hub, monkeypatch):
    def download(*_, **__):
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    url = url_of("resnet18")
    place = hub / url.rpartition("/")[2]
    with pytest.raises(TinlabError) as caught:
        load(drawn(), "imagenet")
    assert str(caught.value).startswith(f"model.weights: {url} cannot be fetched (")
    assert str(caught.value).endswith(f"; fetch it by other means and put it at {place}")


def test_a_silent_server_is_not_waited_for(hub, monkeypatch):
    monkeypatch.setattr(weight_files, "PATIENCE_SECONDS", 0.2)
    ended = []

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self):
            while not ended:
                time.sleep(0.02)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(TinlabError, match=r"cannot be fetched .*timed out"):
            weight_files._fetched(f"http://127.0.0.1:{server.server_port}/weights.pth")
    finally:
        ended.append(True)
        server.shutdown()
        server.server_close()
    assert not list(hub.glob("*"))


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"stem": "patch"}, "model.stem: the ImageNet weights of resnet18 are for stem=imagenet, not patch"),
        ({"width": 32}, "model.width: .* are for width=64, not 32"),
        ({"block_order": "e"}, "model.block_order: .* are for block_order=a, not e"),
        ({"shortcut": "average_pool"}, "model.shortcut: .* are for shortcut=projection"),
        ({"activation": "gelu"}, "model.activation: .* are for activation=relu"),
    ],
)
def test_the_option_that_stands_in_the_way_is_named(own, says):
    knobs = recipe.Model(name="resnet18", weights="imagenet", **own)
    with pytest.raises(TinlabError, match=says):
        weight_files.find_file(models.find("resnet18"), knobs)


def test_a_network_without_published_weights_says_so():
    entry = Network(lambda knobs, classes: nn.Identity(), "", "", "fc")
    with pytest.raises(TinlabError, match="no ImageNet weights fit ours; leave weights out, or give a file"):
        weight_files.find_file(entry, recipe.Model(name="ours", weights="imagenet"))
    timm = zoo.import_timm()
    bare = next(n for n in timm.list_models("resnet*") if not timm.models.get_pretrained_cfg(n).has_weights)
    name = f"timm:{bare}"
    with pytest.raises(TinlabError, match=f"timm has no weights for {name}"):
        weight_files.find_file(zoo.find(name), recipe.Model(name=name, weights="imagenet"))


def test_timms_weights_come_from_the_cache_first(tmp_path, monkeypatch):
    import huggingface_hub

    theirs = timm_file(tmp_path, "test_resnet")
    asked = []

    def cached(repository, filename, revision):
        asked.append((repository, filename))
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    model = drawn(name="timm:test_resnet.r160_in1k", classes=1000)
    loaded = load(model, "imagenet", "timm:test_resnet.r160_in1k")
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    assert loaded.path == str(tmp_path / "model.safetensors")
    assert equal(copied(model), dict(theirs.state_dict()))


def test_timms_weights_are_fetched_in_their_safe_form_or_the_other(tmp_path, monkeypatch):
    import huggingface_hub

    theirs = zoo.import_timm().create_model("test_resnet")
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")

    def metadata(url, timeout):
        if url.endswith(".safetensors"):
            raise huggingface_hub.errors.EntryNotFoundError("404")

    def download(repository, filename, revision):
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model = drawn(name="timm:test_resnet", classes=1000)
    load(model, "imagenet", "timm:test_resnet")
    assert equal(copied(model), dict(theirs.state_dict()))


def test_without_a_network_timms_file_is_named_after_one_question(monkeypatch):
    import huggingface_hub

    asked = []

    def metadata(url, timeout):
        asked.append((url, timeout))
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    address = huggingface_hub.hf_hub_url("timm/test_resnet.r160_in1k", "model.safetensors")
    with pytest.raises(TinlabError) as caught:
        load(drawn(name="timm:test_resnet"), "imagenet", "timm:test_resnet")
    assert asked == [(address, weight_files.PATIENCE_SECONDS)]
    assert str(caught.value) == (
        f"model.weights: {address} cannot be fetched (Name or service not known); fetch it by other "
        "means and give its path: --set model.weights=PATH/model.safetensors"
    )


def test_weights_without_a_classifier_leave_it_new(tmp_path):
    name = "timm:convnextv2_atto.fcmae"
    entry = zoo.find(name)
    assert zoo.import_timm().models.get_pretrained_cfg("convnextv2_atto.fcmae").num_classes == 0
    model = entry.build(entry.resolve(recipe.Model(name=name)), 5)
    headless = {n: v + 1 for n, v in model.state_dict().items() if not n.startswith("head.fc.")}
    save_file(headless, tmp_path / "model.safetensors")
    loaded = load(model, tmp_path / "model.safetensors", name)
    assert loaded.classifier_kept_new
    assert loaded.tensors == len(headless)
