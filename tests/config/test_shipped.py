"""The configurations in configs/ load, and name the schema that editors check them with."""

from pathlib import Path

import pytest

from mt.config import load_config
from tests.conftest import ROOT

SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_configuration_loads_and_names_its_schema(path: Path) -> None:
    config = load_config(path)
    assert config.run_dir == f"runs/{path.stem}"
    assert config.data.train
    assert config.data.test
    assert path.read_text(encoding="utf-8").startswith(
        "# yaml-language-server: $schema=schema.json\n"
    )


def test_the_two_multi30k_directions_are_the_same_recipe() -> None:
    de_en, en_de = (
        load_config(ROOT / f"configs/multi30k-{pair}.yaml").model_dump()
        for pair in ("de-en", "en-de")
    )
    assert de_en["data"]["train"][0]["src"] == en_de["data"]["train"][0]["tgt"]
    for config in (de_en, en_de):
        config.pop("data")
        config.pop("run_dir")
    assert de_en == en_de
