"""Recordings saved and loaded by the nodes, names that try to get out, and errors as the user of a server sees them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from goca_core.attention.file import save
from scripts.comfy_server import ComfyServer, NodeError

from ..unit.recordings import recording


@pytest.fixture(scope="module")
def node(host: SimpleNamespace, pack: ModuleType) -> Callable[..., Any]:
    """Runs a node by its short name; gives its outputs, or the one it has."""

    def run(name: str, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            result = host.nodes.NODE_CLASS_MAPPINGS[f"GOCA_{name}"].execute(*args, **kwargs).result
        return result[0] if len(result) == 1 else result

    return run


@pytest.fixture(scope="module")
def attention(pack: ModuleType, host: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A recording of the loaded pack's own classes."""
    path = tmp_path_factory.mktemp("made") / "one.safetensors"
    save(str(path), recording())
    return importlib.import_module(f"{pack.__name__}.goca_core.attention").load(str(path))


def soft_masks(node: Callable[..., Any], source: Any) -> Any:
    return node("MaskFromTokens", source, "red cat\ngrass", "", "soft")[0]


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_a_file_gives_the_same_masks(
    node: Callable[..., Any], attention: Any, host: SimpleNamespace, precision: str
) -> None:
    names = [node("SaveAttention", attention, f"sub/{precision}", precision) for _ in range(2)]
    assert names == [f"output/sub/{precision}_{number:05}.safetensors" for number in (1, 2)]
    root = Path(host.folder_paths.get_output_directory()) / "goca"
    assert all((root / name.removeprefix("output/")).is_file() for name in names)
    load = host.nodes.NODE_CLASS_MAPPINGS["GOCA_LoadAttention"]
    assert load.validate_inputs(names[1]) is True
    assert names[0] in load.GET_NODE_INFO_V1()["input"]["required"]["file"][1]["options"]
    found = soft_masks(node, node("LoadAttention", names[1]))
    expected = soft_masks(node, attention)
    # Rounding to float16 is small beside the differences of these random maps only before they are stretched.
    assert torch.equal(found, expected) if precision == "float32" else (found - expected).abs().mean() < 0.05


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "a/../../outside",
        "..",
        "",
        " ",
        "../goca_too/x",
        "/etc/x",
        "a:b",
        "cats/c:x",
        "a\nb",
        "a\0b",
        "a\ud800",
    ],
)
def test_names_that_leave_the_folder_are_not_saved(
    node: Callable[..., Any], attention: Any, host: SimpleNamespace, name: str
) -> None:
    output = Path(host.folder_paths.get_output_directory())
    before = sorted(path for path in output.rglob("*") if path.is_file())
    with pytest.raises(Exception, match="leads out of the folder output/goca"):
        node("SaveAttention", attention, name)
    assert sorted(path for path in output.rglob("*") if path.is_file()) == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 300, "the name is too long"),
        ("x" * 300 + "/cat", "the name is too long"),
        ("taken.txt/cat", "a file or folder of that name is in the way"),
        ("out/cat", "leads out of the folder"),
        ("out/deep/cat", "leads out of the folder"),
        ("circle/cat", "cannot be saved in"),
    ],
)
def test_what_cannot_be_saved_is_one_sentence(
    node: Callable[..., Any], attention: Any, host: SimpleNamespace, tmp_path: Path, name: str, said: str
) -> None:
    output = Path(host.folder_paths.get_output_directory())
    root = output / "goca"
    root.mkdir(exist_ok=True)
    made = [root / "taken.txt", root / "out", root / "circle"]
    made[0].write_text("kept")
    made[1].symlink_to(tmp_path, target_is_directory=True)
    made[2].symlink_to(made[2])
    before = sorted(output.rglob("*"))
    try:
        with pytest.raises(ValueError, match=said) as caught:
            node("SaveAttention", attention, name)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
        assert sorted(output.rglob("*")) == before and not list(tmp_path.iterdir())
    finally:
        for path in made:
            path.unlink()


def test_a_folder_of_that_name_is_passed_over(node: Callable[..., Any], attention: Any, host: SimpleNamespace) -> None:
    (Path(host.folder_paths.get_output_directory()) / "goca" / "passed_00001.safetensors").mkdir(parents=True)
    assert node("SaveAttention", attention, "passed") == "output/passed_00002.safetensors"


@pytest.mark.parametrize(
    "name", ["output/../secret.safetensors", "/etc/passwd", "input/../../x.safetensors", "output/a.txt", "", "output/",
     "elsewhere/a.safetensors", "output/a\0b.safetensors", "output/a\ud800.safetensors", "output/" + "x" * 300],
)  # fmt: skip
def test_names_that_leave_the_folder_are_not_loaded(node: Callable[..., Any], host: SimpleNamespace, name: str) -> None:
    secret = Path(host.folder_paths.get_output_directory()) / "secret.safetensors"
    save(str(secret), recording())
    load = host.nodes.NODE_CLASS_MAPPINGS["GOCA_LoadAttention"]
    said = load.validate_inputs(name)
    assert "not a recording in the folder" in said and "\n" not in said and len(said) < 300
    with pytest.raises(ValueError, match="not a recording in the folder"):
        node("LoadAttention", name)


def test_what_leads_out_is_not_offered(host: SimpleNamespace, tmp_path: Path) -> None:
    """Only what can be loaded is in the list: links within the folder are, others are not."""
    root = Path(host.folder_paths.get_input_directory()) / "goca"
    save(str(root / "real.safetensors"), recording())
    save(str(tmp_path / "outside.safetensors"), recording())
    (root / "other.txt").write_bytes(b"")
    (root / "folder.safetensors").mkdir()
    links = {"within": "real.safetensors", "out": tmp_path / "outside.safetensors", "circle": "circle.safetensors"}
    links |= {"gone": "gone.txt", "other": "other.txt"}
    for name, target in links.items():
        (root / f"{name}.safetensors").symlink_to(target)
    (root / "deep").symlink_to(tmp_path, target_is_directory=True)
    (root / f".goca.{'0' * 32}.part").mkdir()
    (root / f".goca.{'0' * 32}.part" / "new").write_bytes(b"half")
    load = host.nodes.NODE_CLASS_MAPPINGS["GOCA_LoadAttention"]
    offered = load.GET_NODE_INFO_V1()["input"]["required"]["file"][1]["options"]
    assert [name for name in offered if name.startswith("input/")] == [
        "input/real.safetensors",
        "input/within.safetensors",
    ]
    for name in offered:
        assert load.validate_inputs(name) is True
    for name in ("out", "circle", "gone", "other", "folder", "deep/outside"):
        assert load.validate_inputs(f"input/{name}.safetensors") is not True


@pytest.mark.parametrize("file", [5, True, ["output/a.safetensors"], {"a": 1}, 0.5])
def test_a_file_that_is_no_text_is_one_sentence(node: Callable[..., Any], host: SimpleNamespace, file: Any) -> None:
    load = host.nodes.NODE_CLASS_MAPPINGS["GOCA_LoadAttention"]
    said = load.validate_inputs(file)
    assert (
        f"must be the name of a recording, such as output/attention_00001.safetensors, and it is of type {type(file).__name__};"
        in said
    )
    assert "\n" not in said
    with pytest.raises(ValueError, match="must be the name of a recording"):
        node("LoadAttention", file)


def test_a_file_from_another_node_is_checked_when_the_graph_runs(host: SimpleNamespace) -> None:
    load = host.nodes.NODE_CLASS_MAPPINGS["GOCA_LoadAttention"]
    assert load.validate_inputs(None) is True and load.fingerprint_inputs(None) != load.fingerprint_inputs(None)


# -- the server -------------------------------------------------------------------------------------------------------


def graph(file: str, phrases: str) -> dict[str, dict[str, Any]]:
    return {
        "1": {"class_type": "GOCA_LoadAttention", "inputs": {"file": file}},
        "2": {
            "class_type": "GOCA_MaskFromTokens",
            "inputs": {
                "source": ["1", 0],
                "phrases": phrases,
                "background": "auto",
                "mode": "partition",
                "background_rule": "offset",
                "theta": 0.0,
                "propagation": -1,
                "smooth": 0.0,
                "largest_component": False,
                "size": "image",
                "width": 512,
                "height": 512,
            },
        },
        "3": {"class_type": "MaskToImage", "inputs": {"mask": ["2", 0]}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }


def test_the_server_reports_the_sentence_and_goes_on(server: ComfyServer) -> None:
    folder = server.output / "goca"
    save(str(folder / "good.safetensors"), recording())
    (folder / "bad.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:900])
    with pytest.raises(
        NodeError, match=r"'bad\.safetensors' is damaged or incomplete.*save the recording again"
    ) as caught:
        server.run(graph("output/bad.safetensors", "cat"))
    assert caught.value.node_type == "GOCA_LoadAttention"
    with pytest.raises(NodeError, match='"dog" is not in the prompt, whose words are') as caught:
        server.run(graph("output/good.safetensors", "dog"))
    assert caught.value.node_type == "GOCA_MaskFromTokens"
    with pytest.raises(NodeError, match=r"must be the name of a recording.*of type int"):
        server.run(graph(5, "cat"))  # type: ignore[arg-type]
    with pytest.raises(NodeError, match="no recording 'output/gone"):
        server.run(graph("output/gone.safetensors", "cat"))
    run = server.run(graph("output/good.safetensors", "red cat\ngrass"))
    assert len(run.outputs["4"]["images"]) == 4
    (table,) = run.outputs["2"]["goca_masks"]
    assert table["phrases"] == ["red cat", "grass"] and len(table["area"]) == 2
