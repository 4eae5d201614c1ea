from pathlib import Path

from workbench.config.fields import options, options_table
from workbench.config.options import GROUPS, RunConfig
from workbench.config.presets import DEFAULT, list_presets
from workbench.config.run_config import validated
from workbench.ui.catalogue import TEXT
from workbench.ui.strings import i18n

ROOT = Path(__file__).parents[2]


def test_every_option_has_words_in_both_languages():
    found = options()
    assert len(found) == len(RunConfig.model_fields) > 60
    for option in found:
        assert option.group in GROUPS
        assert all(option.labels) and all(option.helps), option.name


def test_options_table_in_the_docs_is_current():
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == options_table(), (
        "Run: python -m workbench options > docs/options.md"
    )


def test_catalogue_has_both_languages():
    assert all(len(pair) == 2 and all(pair) for pair in TEXT.values())
    assert i18n.translations["en"].keys() == i18n.translations["zh"].keys()


def test_presets_are_complete_and_valid():
    presets = list_presets()
    assert [p.name for p in presets] == [
        DEFAULT,
        "deepseek-moe-16b-qlora",
        "deepseek-v2-lite-qlora",
        "deepseek-v2-qlora",
        "generic-qlora",
        "glm4-9b-qlora",
        "llama3-8b-qlora",
        "qwen3-8b-qlora",
    ]
    assert len(presets) == len(list((ROOT / "presets").glob("*"))) == 8
    for preset in presets:
        assert (
            preset.purpose and preset.memory and preset.command.startswith(f"python -m workbench train {preset.name}")
        )
        validated(preset.values, where=preset.name)
