"""One supernet file: views that answer like copies, budgets, and no weight beside the file's."""

import dataclasses
import functools
import gc
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.profiler import profile

from superfednas.deploy.device import elastic
from superfednas.deploy.device.elastic import ElasticModel
from superfednas.deploy.device.elastic_file import write_elastic
from superfednas.deploy.device.menu import menu_entry
from superfednas.deploy.device.runtime import model as runtime
from superfednas.deploy.device.runtime.card import Card
from superfednas.deploy.device.runtime.classify import classify_paths
from superfednas.deploy.device.runtime.errors import DeployError
from superfednas.deploy.device.runtime.fields import Output
from superfednas.deploy.device.views import Views
from superfednas.nas.cost.cost import COSTS
from superfednas.nas.score.tallies import subnet_module
from superfednas.supernet import Architecture, SearchSpace, State
from superfednas.supernet.boxes import Boxes
from superfednas.supernet.families.resnet.spaces import ResNetTiny
from superfednas.supernet.families.resnet.wide import WideResNetSpace
from superfednas.tasks.images import Images
from tests.support import strategies
from tests.support.exports import picture_note

space = functools.partial(strategies.space, norm="none")


def card(of: SearchSpace, menu: tuple[dict, ...] | None = None) -> Card:
    if menu is None:
        menu = tuple(entry(of, of.parse(arch)) for arch in ("smallest", "random:9"))
    name = of.name or f"{type(of).__module__}:{type(of).__qualname__}"
    options = ("num_classes", "in_channels", "image_size", "norm")
    note = picture_note(of.in_channels, of.image_size, tuple("abc"))
    note["space"] = {"space": name, **{option: getattr(of, option) for option in options}}
    largest = of.largest
    costs = {"macs": of.macs(largest), "params": of.params(largest)}
    return Card(architecture=largest.to_json(), menu=menu, **costs, **note)


def entry(of: SearchSpace, arch: Architecture, **score: float | None) -> dict:
    costs = {"macs": of.macs(arch), "params": of.params(arch)}
    return {"architecture": arch.to_json(), **costs, **score}


def model(
    of: SearchSpace | None = None, state: State | None = None, menu: tuple[dict, ...] | None = None
) -> ElasticModel:
    of = of or space()
    return ElasticModel(of, state or strategies.noisy_state(of), card(of, menu))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "supernet.safetensors"
    write_elastic(path, space(), strategies.noisy_state(space()), card(space()))
    return path


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# Views answer like copies


class WideTiny(WideResNetSpace):
    """Stem and stages of elastic width too: even the head's matrix is sliced."""

    name = ""
    stem, widths, strides = ResNetTiny.stem, ResNetTiny.widths, ResNetTiny.strides
    depths, ratios, shares = ResNetTiny.depths, ResNetTiny.ratios, (0.5, 0.75, 1.0)


def spaces() -> list[SearchSpace]:
    of = [
        strategies.space(norm=norm, image_size=size, in_channels=channels)
        for norm in ("none", "group")
        for size, channels in ((8, 1), (32, 3))
    ]
    return [*of, WideTiny(Images(3, 1, 8))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "of", spaces(), ids=lambda of: f"{type(of).__name__}-{of.norm}-{of.image_size}"
)
def test_every_subnet_answers_bit_for_bit_like_the_extracted_one(
    tmp_path: Path, of: SearchSpace
) -> None:
    state = strategies.noisy_state(of)
    write_elastic(tmp_path / "file", of, state, card(of))
    loaded = ElasticModel.load(tmp_path / "file")
    rng = np.random.default_rng(1)
    for arch in [of.smallest, of.largest, *(of.sample(rng) for _ in range(15))]:
        copy = subnet_module(of, state, arch).eval()
        assert loaded.use(arch) == loaded.architecture == arch
        for count in (1, 5):
            images = strategies.pictures(
                count, size=of.image_size, channels=of.in_channels, seed=count
            )
            with torch.inference_mode():
                expected = copy(images)
            assert torch.equal(loaded(images), expected)
            assert np.array_equal(loaded.network([images.numpy()]), expected.numpy())


def test_a_file_that_another_tool_laid_out_answers_the_same(tmp_path: Path) -> None:
    of = space()
    state = strategies.noisy_state(of)
    save_file(state, tmp_path / "file", {"superfednas-card": card(of).to_json()})
    with safe_open(tmp_path / "file", "pt") as opened:
        pointers = [opened.get_tensor(name).data_ptr() for name in state]
    assert any(pointer % 64 for pointer in pointers)  # else this test shows nothing
    loaded = ElasticModel.load(tmp_path / "file")
    assert not any(p.data_ptr() % 64 for p in loaded.module.parameters())
    images = strategies.pictures(2)
    with torch.inference_mode():
        expected = subnet_module(of, state, loaded.use("random:1")).eval()(images)
    assert torch.equal(loaded(images), expected)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_parameters_are_views_that_nobody_trains(norm: str) -> None:
    of = strategies.space(norm=norm)
    state = strategies.noisy_state(of)
    elastic_model = model(of, state)
    elastic_model.use("smallest")
    assert dict(elastic_model.module.named_parameters()).keys() == of.shapes(of.smallest).keys()
    for name, parameter in elastic_model.module.named_parameters():
        assert parameter.untyped_storage().data_ptr() == state[name].untyped_storage().data_ptr()
        assert not parameter.requires_grad
    assert not any(layer.training for layer in elastic_model.module.modules())


def storages() -> dict[int, int]:
    """Find the memory of every tensor that is alive: address to bytes."""
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)  # an export's fake tensors have no memory
    tensors = [thing for thing in gc.get_objects() if type(thing) in kinds]
    held = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    return {storage.data_ptr(): storage.nbytes() for storage in held}


@pytest.mark.slow
def test_no_weight_storage_is_held_beside_the_supernets(file: Path) -> None:
    before = storages()
    loaded = ElasticModel.load(file)
    held = storages()
    added = sum(size for address, size in held.items() if address not in before)
    assert added == loaded.weight_bytes == 4 * space().params(space().largest)
    images = strategies.pictures(1)
    for seed in range(3 * elastic._RECENT):
        loaded.use(f"random:{seed}")
        loaded(images)
    assert storages().keys() - {images.data_ptr()} == held.keys()


def test_the_file_is_mapped_not_read(file: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    loaded = ElasticModel.load(file)
    areas = [line.split() for line in maps.read_text().splitlines() if line.endswith(str(file))]
    ranges = [[int(end, 16) for end in area[0].split("-")] for area in areas]
    weights = {name: p for name, p in loaded.module.named_parameters() if p.nbytes % 64 == 0}
    assert weights.keys() >= {"stem.conv.weight", "stages.0.0.conv2.weight", "head.weight"}
    for weight in weights.values():
        assert any(start <= weight.data_ptr() < stop for start, stop in ranges)


@pytest.mark.parametrize("of", [space(), WideTiny(Images(3, 1, 8))])
@pytest.mark.parametrize("arch", ["smallest", "random:4", "largest"])
def test_transient_bytes_are_what_torch_copies_in_a_call(of: SearchSpace, arch: str) -> None:
    elastic_model = model(of)
    elastic_model.use(arch)
    images = strategies.pictures(1)
    with profile(profile_memory=True) as profiler:
        elastic_model(images)
    copied = [e.cpu_memory_usage for e in profiler.events() if e.name == "aten::clone"]
    assert elastic_model.active.copied_bytes == sum(copied)
    assert elastic_model.active.transient_bytes == max(copied, default=0)
    assert (elastic_model.active.copied_bytes > 0) == (arch != "largest")


# Switching


def test_the_menu_stays_built_and_the_last_few_others_too() -> None:
    elastic_model = model(menu=(entry(space(), space().smallest),))

    def built(arch: str) -> torch.nn.Module:
        elastic_model.use(arch)
        return elastic_model.module

    first, other = built("smallest"), built("random:100")
    assert built("random:100") is other
    for seed in range(elastic._RECENT):
        built(f"random:{seed}")
    assert built("smallest") is first
    assert built("random:100") is not other


@pytest.mark.parametrize("of", [space(), WideTiny(Images(3, 1, 8))])
def test_subnets_share_the_modules_of_their_blocks(of: SearchSpace) -> None:
    views = Views(of, strategies.noisy_state(of))
    rng = np.random.default_rng(3)
    seen: dict[tuple[str, torch.Size], torch.nn.Parameter] = {}
    for arch in (of.sample(rng) for _ in range(12)):
        weights = dict(views.module(arch).named_parameters())
        for name in ("stem.conv.weight", "head.weight"):
            weight = weights[name]
            assert seen.setdefault((name, weight.shape), weight) is weight
    assert len(seen) < 12


def test_where_blocks_are_few_no_switch_builds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    of = space()
    elastic_model = model(of, menu=(entry(of, of.smallest),))
    built: list[str] = []
    build = Views._build
    monkeypatch.setattr(Views, "_build", lambda *args: built.append("") or build(*args))
    rng = np.random.default_rng(4)
    for arch in (of.largest, *(of.sample(rng) for _ in range(40))):
        elastic_model.use(arch)
    assert not built


def test_a_call_keeps_the_subnet_that_it_began_with() -> None:
    elastic_model = model()
    images = strategies.pictures(2)
    elastic_model.use("smallest")
    small = elastic_model(images)
    elastic_model.use("largest")
    large = elastic_model(images)
    inside, switched = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        inside.set()
        assert switched.wait(10)

    elastic_model.module.stem.register_forward_hook(wait)
    answers: list[torch.Tensor] = []
    call = threading.Thread(target=lambda: answers.append(elastic_model(images)))
    call.start()
    assert inside.wait(10)
    elastic_model.use("smallest")
    switched.set()
    call.join()
    assert torch.equal(answers[0], large)
    assert torch.equal(elastic_model(images), small) and not torch.equal(small, large)


def test_threads_may_switch_while_others_call() -> None:
    elastic_model = model()
    images = strategies.pictures(1)
    seeds = range(2 * elastic._RECENT)
    expected = []
    for seed in seeds:
        elastic_model.use(f"random:{seed}")
        expected.append(elastic_model(images))
    done = threading.Event()

    def switch() -> None:
        for _ in range(3):
            for seed in seeds:
                elastic_model.use(f"random:{seed}")
        done.set()

    switcher = threading.Thread(target=switch)
    switcher.start()
    while not done.is_set():
        answer = elastic_model(images)
        assert any(torch.equal(answer, one) for one in expected)
    switcher.join()


# Handles


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(data=st.data(), norm=st.sampled_from(("none", "group")))
def test_handles_that_threads_call_at_once_do_not_disturb_each_other(
    data: st.DataObject, norm: str
) -> None:
    of = strategies.space(norm=norm)
    elastic_model, images = model(of), strategies.pictures(2)
    archs = data.draw(st.lists(strategies.architectures(of), min_size=2, max_size=3, unique=True))
    state, expected = strategies.noisy_state(of), []
    for arch in archs:
        with torch.inference_mode():
            expected.append(subnet_module(of, state, arch).eval()(images))
    together, found = threading.Barrier(len(archs)), [[] for _ in archs]

    def call(number: int) -> None:
        subnet = elastic_model.subnet(archs[number])
        together.wait(10)
        for _ in range(5):
            found[number].append(subnet(images))
            elastic_model.use(archs[number])

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(archs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answers, one in zip(found, expected, strict=True):
        assert len(answers) == 5 and all(torch.equal(answer, one) for answer in answers)


def test_a_handle_answers_while_another_is_within_a_call() -> None:
    elastic_model, images = model(), strategies.pictures(2)
    small, large = (elastic_model.subnet(arch) for arch in ("smallest", "largest"))
    assert small.module.stem is large.module.stem  # a module of both, in which one now waits
    expected = large(images)
    inside, answered = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        if threading.current_thread() is call:
            inside.set()
            assert answered.wait(10)

    large.module.stem.register_forward_hook(wait)
    answers: list[torch.Tensor] = []
    call = threading.Thread(target=lambda: answers.append(large(images)))
    call.start()
    assert inside.wait(10)
    assert small(images).shape == expected.shape and not torch.equal(small(images), expected)
    answered.set()
    call.join()
    assert torch.equal(answers[0], expected)


def test_a_handle_outlives_what_is_asked_for_after_it() -> None:
    elastic_model, images = model(menu=()), strategies.pictures(1)
    subnet = elastic_model.subnet("random:5")
    expected = subnet(images)
    for seed in range(3 * elastic._RECENT):
        elastic_model.use(f"random:{seed}")
    assert torch.equal(subnet(images), expected)
    assert elastic_model.subnet(subnet.architecture).architecture == subnet.architecture
    assert np.array_equal(subnet.network([images.numpy()]), expected.numpy())


def test_handles_are_asked_for_by_name_by_architecture_and_by_limits() -> None:
    of = space()
    middle = of.parse("random:7")
    costs = entry(of, of.smallest)
    elastic_model = model(
        menu=(costs | {"name": "tiny"}, entry(of, middle) | {"name": "middle", "bytes": 1})
    )
    assert elastic_model.subnet("tiny").architecture == of.smallest
    assert elastic_model.subnet("middle").architecture == middle
    assert elastic_model.subnet(middle) is elastic_model.subnet("random:7")
    assert elastic_model.subnet({"macs": costs["macs"]}).architecture == of.smallest
    assert elastic_model.subnet().architecture == max(of.smallest, middle, key=of.macs)
    assert elastic_model.architecture == of.largest  # nobody said use
    assert elastic_model.use({"params": costs["params"]}) == of.smallest
    for unknown in ("bytes", "joules"):  # what not all of the menu has is no limit
        with pytest.raises(DeployError, match=rf"has no {unknown}; it has macs, params"):
            elastic_model.subnet({unknown: 5})


def test_pictures_are_classified_by_the_active_subnet(tmp_path: Path) -> None:
    elastic_model = model()
    pixels = np.random.default_rng(0).integers(256, size=(8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    for arch in ("smallest", "largest"):
        module = subnet_module(space(), strategies.noisy_state(space()), elastic_model.use(arch))
        images = (torch.from_numpy(pixels)[None, None] / 255 - 0.5) / 0.25
        with torch.inference_mode():
            expected = dict(zip("abc", module.eval()(images)[0].softmax(0).tolist(), strict=True))
        (result,) = classify_paths(elastic_model, [tmp_path])
        assert dict(result.answers) == pytest.approx(expected, abs=1e-5)


# Budgets


@functools.cache
def menus() -> list[ElasticModel]:
    """Give models whose menus have all scores, some, or none."""
    rng = np.random.default_rng(5)
    archs = [space().sample(rng) for _ in range(8)]
    scores = rng.integers(3, size=8) / 2  # many ties
    score = [
        [{"score": s} for s in scores],
        [{"score": s} if s else {"score": None} for s in scores],
        [{}] * 8,
    ]
    return [
        model(menu=tuple(entry(space(), a, **s) for a, s in zip(archs, row, strict=True)))
        for row in score
    ]


def limits(what: str) -> st.SearchStrategy[int | None]:
    """Draw a limit: none, any, or exactly what an entry has."""
    exact = [e[what] for e in menus()[0].card.menu]
    return st.none() | st.integers(0, 2 * max(exact)) | st.sampled_from(exact)


@settings(deadline=None)
@given(
    which=st.integers(0, 2),
    macs=st.deferred(lambda: limits("macs")),
    params=st.deferred(lambda: limits("params")),
)
def test_a_budget_takes_the_best_that_fits(
    which: int, macs: int | None, params: int | None
) -> None:
    elastic_model = menus()[which]
    fits = [
        e
        for e in elastic_model.card.menu
        if (macs is None or e["macs"] <= macs) and (params is None or e["params"] <= params)
    ]
    before = elastic_model.architecture
    if not fits:
        with pytest.raises(DeployError, match="no subnet of the menu keeps"):
            elastic_model.use(max_macs=macs, max_params=params)
        assert elastic_model.architecture == before
        return
    chosen = elastic_model.use(max_macs=macs, max_params=params)
    took = next(e for e in fits if e["architecture"] == chosen.to_json())
    assert elastic_model.architecture == chosen
    scored = [e for e in fits if e.get("score") is not None]
    if scored:
        assert took["score"] == max(e["score"] for e in scored)
        assert took["macs"] == min(e["macs"] for e in scored if e["score"] == took["score"])
    else:
        assert took["macs"] == max(e["macs"] for e in fits)


def test_every_cost_that_an_architecture_tells_is_a_limit() -> None:
    of = space()
    archs = [of.smallest, of.parse("random:3"), of.largest]
    extra = {arch: {"joules": float(number)} for number, arch in enumerate(archs)}
    elastic_model = model(menu=tuple(menu_entry(of, a, costs=extra[a]) for a in archs))
    assert "latency" not in elastic_model.card.menu[0]
    for cost in (*(each for each in COSTS.values() if each.told), None):
        for arch in archs:
            value = cost.of(of, arch) if cost else extra[arch]["joules"]
            found = elastic_model.subnet({cost.name if cost else "joules": value}).architecture
            assert (cost.of(of, found) if cost else extra[found]["joules"]) <= value
            assert of.macs(found) >= of.macs(arch) or cost is None


def test_an_impossible_budget_names_what_comes_nearest() -> None:
    of = space()
    least, most = (entry(of, arch) for arch in (of.smallest, of.largest))
    elastic_model = model(menu=(most, least))
    with pytest.raises(DeployError) as refused:
        elastic_model.use(max_macs=1)
    assert str(refused.value).endswith(
        f"keeps max_macs = 1: the nearest has {least['macs']:,} macs"
    )
    with pytest.raises(DeployError) as refused:
        elastic_model.use(max_macs=0, max_params=least["params"])
    assert str(refused.value).endswith(
        f"max_macs = 0 and max_params = {least['params']:,}: the nearest has "
        f"{least['macs']:,} macs and {least['params']:,} params"
    )
    assert elastic_model.architecture == of.largest


def test_what_use_refuses() -> None:
    elastic_model = model(menu=())
    with pytest.raises(DeployError, match="menu of this file is empty"):
        elastic_model.use(max_macs=10**9)
    with pytest.raises(DeployError, match="not both"):
        elastic_model.use("smallest", max_macs=1)
    with pytest.raises(ValueError, match="must be one of"):
        elastic_model.use('{"depth":[0,0,0,5],"expand":[[1],[1],[1],[1,1,1,1,1,1]]}')
    assert elastic_model.architecture == space().largest


class JoinedBias(ResNetTiny):
    """Its head's bias lies in two pieces."""

    name = ""

    def boxes(self, arch: Architecture) -> Boxes:
        return super().boxes(arch) | {"head.bias": (((0, 1), (1, 3)),)}


def test_tensors_that_no_view_can_show_are_refused() -> None:
    of = JoinedBias(Images(3, 1, 8))
    with pytest.raises(DeployError, match=r"'head\.bias' .* joins several intervals"):
        Views(of, of.init(0)).module(of.smallest)


# The file


def test_any_safetensors_reader_reads_the_file(file: Path) -> None:
    state = strategies.noisy_state(space())
    read = load_file(file)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)
    again = file.with_name("again")
    write_elastic(again, space(), state, card(space()))
    assert again.read_bytes() == file.read_bytes()
    assert [path.name for path in sorted(file.parent.iterdir())] == ["again", file.name]


def test_the_runtime_reads_the_file_as_the_largest_subnet(file: Path) -> None:
    images = {"images": strategies.small_split(5).fields["images"].numpy()}
    found, expected = (model.run(images) for model in (runtime.load(file), ElasticModel.load(file)))
    assert np.array_equal(found["logits"], expected["logits"])


def test_matrices_lie_on_lines_of_the_file(file: Path) -> None:
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    ragged = [
        name
        for name, about in header.items()
        if name != "__metadata__" and (start + about["data_offsets"][0]) % 64
    ]
    assert start % 64 == 0
    assert all(len(header[name]["shape"]) == 1 for name in ragged)


def test_a_file_is_overwritten_only_on_demand(file: Path) -> None:
    of, state = space(), strategies.noisy_state(space(), seed=1)
    before = file.read_bytes()
    with pytest.raises(DeployError, match="exists"):
        write_elastic(file, of, state, card(of))
    assert file.read_bytes() == before
    with pytest.raises(DeployError, match="cannot be written"):
        write_elastic(file.parent / "nowhere" / "file", of, state, card(of))
    loaded = ElasticModel.load(file)
    logits = loaded(strategies.pictures(1))
    write_elastic(file, of, state, card(of), overwrite=True)
    assert not torch.equal(ElasticModel.load(file)(strategies.pictures(1)), logits)
    assert torch.equal(loaded(strategies.pictures(1)), logits)  # the old file lives on while in use


def test_static_batch_norm_is_refused(tmp_path: Path) -> None:
    of = strategies.space(norm="batch")
    with pytest.raises(DeployError, match=r"norm = 'batch': .* export the subnet instead"):
        write_elastic(tmp_path / "file", of, of.init(0), card(of))
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_together_is_not_written(tmp_path: Path) -> None:
    of = space()
    state, good = of.init(0), card(of)
    small = of.smallest.to_json()
    wrong = [entry(of, of.smallest) | {what: 7} for what in ("macs", "params")]
    cases = [
        (state | {"extra": torch.zeros(1)}, good, "'extra' is float32 (1,); expected: unknown"),
        ({k: v for k, v in state.items() if k != "head.bias"}, good, "'head.bias' is missing"),
        (state | {"head.bias": torch.zeros(4)}, good, "(4,); expected: float32 (3,)"),
        (state | {"head.bias": torch.zeros(3).half()}, good, "is float16 (3,)"),
        (state, dataclasses.replace(good, architecture=small), "one subnet, not the largest"),
        (state, card(strategies.space()), "is not the one of the weights"),
        (
            state,
            dataclasses.replace(good, outputs={"a": Output((1,))}),
            "answer (1,); they answer (3,)",
        ),
        (state, card(of, menu=(wrong[0],)), f"has macs = {of.macs(of.smallest)}, not 7"),
        (state, card(of, menu=(wrong[1],)), f"has params = {of.params(of.smallest)}, not 7"),
    ]
    for tensors, note, message in cases:
        with pytest.raises(DeployError) as refused:
            write_elastic(tmp_path / "file", of, tensors, note)
        assert message in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_elastic_file_end_in_a_sentence(file: Path) -> None:
    of, state, good = space(), space().init(0), card(space())
    with pytest.raises(DeployError, match="no such file"):
        ElasticModel.load(file.with_name("nothing"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(DeployError, match="truncated or no safetensors"):
        ElasticModel.load(file)
    save_file(state, file)
    with pytest.raises(DeployError, match="no card of this project"):
        ElasticModel.load(file)
    for note, message in [
        (dataclasses.replace(good, architecture=of.smallest.to_json()), "one subnet"),
        (dataclasses.replace(good, space=dict(good.space) | {"space": "no"}), "must be one of"),
        (card(of, menu=({},)), "no elastic file"),
    ]:
        save_file(state, file, {"superfednas-card": note.to_json()})
        with pytest.raises(DeployError, match=message):
            ElasticModel.load(file)
