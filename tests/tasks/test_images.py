"""Classification of images: what is in a batch, cohorts, plans, exports, and where images come from."""

from __future__ import annotations

import io
import json
import warnings

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTForImageClassification
from transformers.image_utils import load_image

import fedsa
from fedsa.cost.plan import plan_run
from fedsa.errors import ConfigError, DataError, ModelError
from fedsa.federation import Federation
from fedsa.recipe import TrainingSettings, parse_recipe, read_recipe
from fedsa.runs.export import export
from fedsa.store import RunFolder, recipe_of
from fedsa.tasks.images import ImageClassification, opened
from support.federations import check_training, figures_of_all
from support.tiny_vision import CLASSES, SIDE, picture, write_dinov2, write_pictures, write_swin, write_vit

pytestmark = pytest.mark.run

MODELS = {"vit": write_vit, "dinov2": write_dinov2}
TOKENS = (SIDE // 4) ** 2 + 1


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    models = {name: write(folder / name) for name, write in MODELS.items()}
    return models, write_pictures(folder / "pictures", ["photo", "sketch"])


@pytest.fixture(scope="module")
def recipe(places):
    models, pictures = places

    def make(name="vit", *, task=(), data=(), partition=None, **changes):
        return parse_recipe(
            {
                "rounds": 2,
                "model": {"path": str(models[name]), "attn_implementation": "sdpa"},
                "adapter": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
                "task": {"kind": "image_classification", **dict(task)},
                "data": {
                    "path": str(pictures),
                    "partition": partition or {"kind": "column", "column": "domain"},
                    **dict(data),
                },
                "training": {"local_steps": 3, "batch_size": 4, "learning_rate": 1e-2},
                "compute": {"device": "cpu", "threads": 1, "precision": "fp32"},
                **changes,
            }
        )

    return make


@pytest.mark.run
@pytest.mark.parametrize(("dtype", "steps", "bound"), [(torch.float64, 20, 1e-10), (torch.float32, 3, 1e-5)])
@pytest.mark.parametrize("name", MODELS)
def test_a_cohort_comes_to_what_one_at_a_time_comes_to(recipe, name, dtype, steps, bound):
    federation = Federation.from_recipe(recipe(name))
    assert (federation.recipe.training.trainer, federation.recipe.training.packing) == ("cohort", False)
    settings = TrainingSettings(local_steps=steps, batch_size=4, learning_rate=2e-3, optimizer="sgd")
    check_training(federation, dtype=dtype, settings=settings, packs=(False,), least=1e-6, most=bound)


@pytest.mark.parametrize("name", MODELS)
def test_clients_together_have_the_figures_that_each_has_alone(recipe, name):
    figures_of_all(Federation.from_recipe(recipe(name)), pack=False)


@pytest.mark.parametrize(("name", "size"), [("vit", None), ("dinov2", None), ("dinov2", 24)])
def test_a_batch_is_what_the_models_image_processor_makes_of_the_images(recipe, places, name, size):
    federation = Federation.from_recipe(recipe(name, task={"image_size": size} if size else {}))
    encoded, rows = federation.encoded, [3, 40, 11]
    batch = encoded.batch(rows)
    processor = AutoImageProcessor.from_pretrained(places[0][name], backend="pil")
    images = [federation.rows.table[row]["image"] for row in rows]
    sizes = {} if size is None else {"size": {"shortest_edge": 32}, "crop_size": {"height": 24, "width": 24}}
    expected = processor(images, return_tensors="pt", **sizes)["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], expected, atol=1e-5, rtol=0)
    tokens = ((size or SIDE) // 4) ** 2 + 1
    assert batch["attention_mask"].shape == (3, tokens)
    assert set(encoded.lengths) == {tokens}
    assert batch["labels"].tolist() == [CLASSES.index(federation.rows.table[row]["image"].filename.split("/")[-2])
                                        for row in rows]  # fmt: skip


def test_pixels_are_bytes_that_are_made_once(recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSA_CACHE", str(tmp_path))
    calls = []
    resize = ImageClassification._resize
    monkeypatch.setattr(ImageClassification, "_resize", lambda *given: calls.append(1) or resize(*given))
    encoded = [Federation.from_recipe(recipe("dinov2", seed=seed)).encoded for seed in (0, 1)]
    assert len(calls) == 1
    assert encoded[0].pixels.dtype == np.uint8
    assert isinstance(encoded[1].pixels, np.memmap)
    assert encoded[0].fingerprint() == encoded[1].fingerprint()


@pytest.mark.run
def test_a_plan_counts_what_a_run_does(recipe, tmp_path):
    for name in MODELS:
        wanted = recipe(name, task={"labels": list(CLASSES)})
        plan = plan_run(wanted, clients=2)
        summary = fedsa.run(Federation.from_recipe(wanted), tmp_path / name).summary
        for figure in ("trained_parameters", "upload_bytes", "download_bytes", "sharing_plan", "total_upload_bytes"):
            assert plan[figure] == summary[figure]
        assert plan["tokens_per_row"] == TOKENS
        assert plan["flops_per_round"] > 0
        assert plan["memory"]["activations"] > 0


@pytest.mark.run
def test_a_run_learns_and_its_adapter_is_loaded_by_peft_alone(recipe, places, tmp_path):
    federation = Federation.from_recipe(recipe("vit", rounds=8, training={"local_steps": 15, "learning_rate": 1e-2}))
    summary = fedsa.run(federation, tmp_path / "run").summary
    assert summary["test"]["weighted_mean"] > 0.6
    heads = [entry for entry in summary["sharing_plan"] if entry["factor"] == "head"]
    assert [entry["sent"] for entry in heads] == [False]
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    export(tmp_path / "run", adapter, clients=["sketch"])
    export(tmp_path / "run", merged, clients=["sketch"], merge=True)
    card = (adapter / "README.md").read_text("utf-8")
    assert "pipeline_tag: image-classification" in card
    assert 'AutoImageProcessor.from_pretrained(".")' in card
    base = AutoModelForImageClassification.from_pretrained(places[0]["vit"], num_labels=3)
    loaded = PeftModel.from_pretrained(base, adapter).eval()
    whole = AutoModelForImageClassification.from_pretrained(merged).eval()
    assert whole.config.id2label == dict(enumerate(CLASSES))
    rows = federation.rows.partition.clients["sketch"].test
    images = [federation.rows.table[int(row)]["image"] for row in rows]
    inputs = AutoImageProcessor.from_pretrained(adapter)(images, return_tensors="pt")
    with torch.no_grad():
        logits, same = loaded(**inputs).logits, whole(**inputs).logits
    torch.testing.assert_close(logits, same, atol=1e-4, rtol=1e-4)
    accuracy = (logits.argmax(dim=1).numpy() == federation.rows.labels[rows]).mean()
    about = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))["per_client"]["sketch"]["test"]
    assert accuracy == about["accuracy"]


@pytest.mark.run
@pytest.mark.parametrize("settings", [{"algorithm": "feddpa"}, {"algorithm": "fedit", "share_head": True}])
@pytest.mark.parametrize("name", MODELS)
def test_other_methods_run_too(recipe, tmp_path, name, settings):
    """FedDPA weighs its adapters for each image by the mean of its tokens."""
    summary = fedsa.run(Federation.from_recipe(recipe(name, **settings)), tmp_path / "run").summary
    assert {"photo", "sketch"} == set(summary["per_client"])


def test_a_model_whose_layers_have_windows_trains_one_client_after_the_other(recipe, tmp_path):
    wanted = recipe()
    wanted = wanted.model_copy(
        update={"model": wanted.model.model_copy(update={"path": str(write_swin(tmp_path / "swin"))})}
    )
    federation = Federation.from_recipe(wanted)
    assert federation.recipe.training.trainer == "sequential"
    assert fedsa.run(federation, tmp_path / "run").summary["test"]["weighted_mean"] > 0


def test_a_folder_for_each_client(recipe):
    by_file = Federation.from_recipe(recipe(partition={"kind": "files"}))
    by_column = Federation.from_recipe(recipe())
    assert by_file.clients == by_column.clients == ("photo", "sketch")
    assert by_file.rows.label_names == by_column.rows.label_names == CLASSES


def test_images_in_the_hubs_own_format(recipe, tmp_path):
    """Parquet with the images' bytes: the same pixels as of the files."""
    files = Federation.from_recipe(recipe())
    table = datasets.load_dataset("imagefolder", data_dir=recipe().data.path, split="train")
    domains = [
        cell["path"].split("/")[-3] for cell in table.cast_column("image", datasets.Image(decode=False))["image"]
    ]
    embedded = datasets.Dataset.from_dict(
        {"image": [image.copy() for image in table["image"]], "label": table["label"], "domain": domains}
    ).cast(datasets.Features(image=datasets.Image(), label=table.features["label"], domain=datasets.Value("string")))
    embedded.to_parquet(tmp_path / "train.parquet")
    hub = Federation.from_recipe(recipe(data={"path": str(tmp_path)}))
    assert hub.encoded.fingerprint() == files.encoded.fingerprint()
    assert hub.clients == files.clients


@pytest.mark.run
def test_a_loaded_model_and_a_newcomer(places, recipe, tmp_path):
    models, _ = places
    columns = {
        name: datasets.load_dataset("imagefolder", data_dir=f"{recipe().data.path}/{name}", split="train")
        for name in ("photo", "sketch")
    }
    federation = Federation.from_objects(
        ViTForImageClassification.from_pretrained(models["vit"], num_labels=3),
        LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
        columns,
        rounds=1,
        tokenizer=AutoImageProcessor.from_pretrained(models["vit"], backend="pil"),
        task={"kind": "image_classification"},
        training={"local_steps": 2, "batch_size": 4},
    )
    result = fedsa.run(federation, tmp_path / "objects")
    result.export(tmp_path / "exported", client="photo")
    assert (tmp_path / "exported" / "preprocessor_config.json").is_file()
    fedsa.run(Federation.from_recipe(recipe()), tmp_path / "run")
    new = write_pictures(tmp_path / "new", ["clay"], each=5)
    fedsa.adapt(tmp_path / "run", new / "clay", to=tmp_path / "adapted")
    assert (tmp_path / "adapted" / "adapter_model.safetensors").is_file()


def test_images_that_a_model_does_not_take(recipe):
    with pytest.raises(ModelError, match=r"24 × 24 pixels.*mend task.image_size"):
        Federation.from_recipe(recipe("vit", task={"image_size": 24}))
    with pytest.raises(ModelError, match=r"24 × 24 pixels"):
        plan_run(recipe("vit", task={"image_size": 24}), clients=2)


def test_rows_that_are_no_images(recipe, tmp_path):
    pictures = write_pictures(tmp_path / "bad", ["photo", "sketch"])
    (pictures / "photo" / "cross" / "3.png").write_bytes(b"this is no picture")
    with pytest.raises(
        DataError, match=r"row 11: column 'image' holds no image that can be read \(.*3\.png\): [^<>]+; repair it"
    ):
        Federation.from_recipe(recipe(data={"path": str(pictures)}))
    rows = [{"image": f"{number}.png", "label": number % 2, "domain": number % 3} for number in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with pytest.raises(DataError, match="not images: name the column of the image"):
        Federation.from_recipe(recipe(data={"path": str(tmp_path / "rows.jsonl")}))


def test_settings_that_do_not_go_with_images(recipe):
    with pytest.raises(ConfigError, match="one column in `text_columns`"):
        recipe(task={"text_columns": ["image", "mask"]})
    with pytest.raises(ConfigError, match="`image_size` does not go with kind = 'classification'"):
        recipe(task={"kind": "classification", "image_size": 112})


def as_file(picture, kind, **options):
    """Return a picture as the bytes of a file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


COLOURED = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3)).astype(np.uint8))
DEEP = np.random.default_rng(1).integers(0, 65535, (9, 7)).astype(np.uint16)
PICTURES = {
    **{f"PNG {mode}": as_file(COLOURED.convert(mode), "PNG") for mode in ("1", "L", "LA", "RGB", "RGBA", "P")},
    **{f"TIFF {mode}": as_file(COLOURED.convert(mode), "TIFF") for mode in ("1", "PA", "CMYK", "LAB", "I", "F")},
    **{f"JPEG {mode}": as_file(COLOURED.convert(mode), "JPEG") for mode in ("L", "CMYK", "YCbCr")},
    "GIF": as_file(COLOURED.quantize(8), "GIF"),
    "GIF of two frames": as_file(
        COLOURED, "GIF", save_all=True, append_images=[Image.new("RGB", COLOURED.size, (9, 200, 9))]
    ),
    "BMP": as_file(COLOURED, "BMP"),
    "WEBP": as_file(COLOURED.convert("RGBA"), "WEBP"),
    "palette with transparency in bytes": as_file(
        COLOURED.quantize(8), "PNG", transparency=bytes([0, 128, 255, 255, 0, 9, 8, 7])
    ),
    "palette with a transparent colour": as_file(COLOURED.quantize(8), "PNG", transparency=3),
    "grey with a transparent one": as_file(COLOURED.convert("L"), "PNG", transparency=5),
    "a transparent colour": as_file(COLOURED, "PNG", transparency=(1, 2, 3)),
    "PNG 16 bits": as_file(Image.fromarray(DEEP), "PNG"),
    "TIFF 16 bits": as_file(Image.fromarray(DEEP), "TIFF"),
    "TIFF 16 bits, large first": as_file(Image.frombytes("I;16B", (7, 9), DEEP.astype(">u2").tobytes()), "TIFF"),
    "TIFF 0 to 1": as_file(Image.fromarray((DEEP / 65535).astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_datasets_and_transformers_make_of_it(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = load_image(Image.open(io.BytesIO(PICTURES[name])))
        also = datasets.Image().decode_example({"path": None, "bytes": PICTURES[name]}).convert("RGB")
    mine, is_deep = opened(PICTURES[name])  # without a warning
    assert np.array_equal(mine, theirs)
    assert np.array_equal(mine, also)
    assert is_deep == ("16 bits" in name or "0 to 1" in name)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_picture_is_turned_as_its_note_says(kind, turn):
    note = Image.Exif()
    note[0x0112] = turn
    file = as_file(COLOURED, kind, exif=note)
    theirs = load_image(Image.open(io.BytesIO(file)))
    assert np.array_equal(opened(file)[0], theirs)
    assert theirs.size == ((9, 7) if turn > 4 else (7, 9))


def test_turned_pictures_are_the_same_pixels_in_a_run(recipe, tmp_path):
    upright = write_pictures(tmp_path / "upright", ["photo", "sketch"])
    turned = tmp_path / "turned"
    for number, place in enumerate(sorted(upright.rglob("*.png"))):
        note, own = Image.Exif(), turned / place.relative_to(upright)
        note[0x0112], turn = [(6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270)][number % 2]
        own.parent.mkdir(parents=True, exist_ok=True)
        Image.open(place).transpose(turn).save(own, exif=note)
    one, other = (Federation.from_recipe(recipe(data={"path": str(path)})).encoded for path in (upright, turned))
    assert one.fingerprint() == other.fingerprint()


def test_deep_pictures_are_said(recipe, tmp_path):
    pictures = write_pictures(tmp_path / "deep", ["photo", "sketch"])
    for number in range(3):
        (pictures / "photo" / "cross" / f"{number}.png").write_bytes(PICTURES["PNG 16 bits"])
    for _ in range(2):  # the second time from the cache
        notes = Federation.from_recipe(recipe(data={"path": str(pictures)})).notes
        assert notes == (
            "3 of 48 images have pixels of 16 bits, or from 0 to 1, of which the whole numbers from 0 to 255 are kept, "
            "as wherever transformers opens them: write them with 8 bits.",
        )


def open_row(file):
    task = ImageClassification("image", CLASSES)
    return task._open(4, file, {4: {"image": {"path": "photos/some.png", "bytes": None}}})


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_files_are_pictures_or_clear_errors(kind):
    rng, refused = np.random.default_rng(0), 0
    note = Image.Exif()
    note[0x0112] = 6
    whole = as_file(COLOURED, kind, **({} if kind in ("GIF", "BMP") else {"exif": note}))
    for number in range(60):
        file = bytearray(whole)
        if number % 2:
            del file[int(rng.integers(1, len(file))) :]
        else:
            for place in rng.integers(0, len(file), 4):
                file[place] = int(rng.integers(0, 256))
        try:
            open_row(bytes(file))
        except DataError as error:
            refused += 1
            text = str(error)
            assert text.startswith("row 4: column 'image' holds no image that can be read (photos/some.png): ")
            assert len(text) < 350
    assert refused > 10


def test_a_picture_of_many_megapixels_is_a_clear_error():
    file = as_file(Image.new("1", (15_000, 14_000)), "PNG")
    with pytest.raises(
        DataError, match=r"row 4: .*photos/some\.png\): Image size \(210000000 pixels\).*make it smaller"
    ):
        open_row(file)


def test_a_large_picture_that_pillow_opens_is_opened_without_a_warning():
    assert open_row(as_file(Image.new("1", (9_500, 9_500)), "PNG"))[0].size == (9_500, 9_500)


def test_a_row_without_an_image_is_refused():
    task = ImageClassification("image", CLASSES)
    for cell in (None, {"bytes": None, "path": None}):
        with pytest.raises(DataError, match="row 4: column 'image' has no image"):
            task._bytes(4, cell)
    with pytest.raises(DataError, match=r"row 4: .* the image no/such\.png cannot be read: No such file"):
        task._bytes(4, {"bytes": None, "path": "no/such.png"})


def test_the_run_folder_tells_the_recipe_again(recipe, tmp_path):
    fedsa.run(Federation.from_recipe(recipe("dinov2", task={"image_size": 24})), tmp_path / "run")
    again = recipe_of(RunFolder.open(tmp_path / "run"))
    assert again.task.image_size == 24
    assert again.task.text_columns == ["image"]


def write_parquet(folder, columns, count):
    """Write train and test as the hub has them: images in Parquet, numbers with the names of their classes.

    Args:
        folder: of the data set.
        columns: the image's name, then of every column of classes its name and the names of its classes.
        count: of rows of each class of the first such column, for training.
    """
    image, *classes = columns
    rng = np.random.default_rng(0)
    names = classes[0][1]
    for split, each in (("train", count), ("test", max(1, count // 4))):
        numbers = np.tile(np.arange(len(names)), each)
        data = {image: [picture(rng, int(number), (1.0, 0.6, 0.2), 12) for number in numbers]}
        features = {image: datasets.Image()}
        for column, (name, own) in enumerate(classes):
            data[name] = numbers if not column else rng.permutation(np.arange(len(numbers)) % len(own))
            if name == "coarse_label":
                data[name] = numbers // 5
            features[name] = datasets.ClassLabel(names=list(own))
        (folder / "data").mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_dict(data, features=datasets.Features(features))
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def write_stand_in(name, folder):
    """Write a small data set in the place of a recipe's, as its source has it; return how many clients it is for."""
    labels = read_recipe(name)[0]["task"].get("labels")
    if name == "pacs-small":
        domains = ["art_painting", "cartoon", "photo", "sketch"]
        write_pictures(folder / "pacs_128", domains, labels, each=6)
        return None
    if name == "domainnet":
        domains = ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]
        write_parquet(folder / "DomainNet", ["image", ("label", list("abcd")), ("domain", domains)], 60)
        return None
    coarse = [f"group {number}" for number in range(20)]
    write_parquet(folder / "cifar100", ["img", ("fine_label", labels), ("coarse_label", coarse)], 8)
    return 5


RECIPES = {"pacs-small": 4, "domainnet": 6, "cifar100-gl-dir": 100, "cifar100-sc-dir": 100, "cifar100-patho": 100}


@pytest.mark.run
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_on_a_small_model_and_a_stand_in_of_its_data(places, tmp_path, monkeypatch, name):
    monkeypatch.setenv("FEDSA_DATA", str(tmp_path / "data"))
    clients = write_stand_in(name, tmp_path / "data")
    wanted = read_recipe(name)[0]
    wanted["rounds"] = 2
    wanted["model"] = {"path": str(places[0]["dinov2"])}
    wanted["compute"] = {"threads": 1, "device": "cpu"}
    wanted["training"] |= {"local_steps": 2, "batch_size": 4}
    wanted["training"].pop("local_epochs", None)
    wanted["adaptation"] = {"steps": 2}
    wanted["task"].pop("image_size", None)
    if clients:
        wanted["data"]["partition"]["clients"] = clients
    summary = fedsa.run(Federation.from_recipe(parse_recipe(wanted)), tmp_path / "run").summary
    everyone = clients or RECIPES[name]
    unseen = round(everyone * wanted.get("holdout_clients", 0))
    assert summary["clients"] == everyone - unseen
    assert summary.get("unseen", {"clients": 0})["clients"] == unseen
    assert 0 <= summary["test"]["weighted_mean"] <= 1


@pytest.mark.run
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "pacs-small"])
def test_a_recipe_is_planned_without_model_and_data(name):
    plan = plan_run(parse_recipe(read_recipe(name)[0]), clients=RECIPES[name])
    assert plan["tokens_per_row"] == 197
    assert plan["clients"] == RECIPES[name] * (4 if "cifar" in name else 5) // 5
    assert plan["sharing_plan"][0]["sent"]
