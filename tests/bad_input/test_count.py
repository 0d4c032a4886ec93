"""There are hundreds of cases, and none of them twice."""

from tests.bad_input.test_commands import COMMANDS, DATA_FOLDERS, RAW_COMMANDS
from tests.bad_input.test_library import BESIDE, CONFIGS, EVALUATE, FIT, LOADER, NOT_IMAGES, RECIPES
from tests.bad_input.test_models import MODELS
from tests.bad_input.test_runs import PLACES, PLOTS, RUNS

DOORS: dict[str, list[object]] = {
    "command line": [*(words for words, _ in COMMANDS), *RAW_COMMANDS],
    "environment": list(range(len(DATA_FOLDERS))),
    "config": list(range(len(CONFIGS))),
    "images": list(NOT_IMAGES),
    "fit": list(range(len(FIT))),
    "evaluate": list(range(len(EVALUATE))),
    "loader": [*range(len(LOADER)), *BESIDE],
    "model recipes": list(range(len(RECIPES))),
    "models": list(MODELS),
    "run folders": [*RUNS, *PLACES],
    "pictures": list(PLOTS),
}


def test_there_are_hundreds() -> None:
    for door, cases in DOORS.items():
        assert len(set(cases)) == len(cases), door
    assert sum(map(len, DOORS.values())) >= 400
