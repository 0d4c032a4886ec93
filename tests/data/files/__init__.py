"""Files and arrays of images: what is accepted, and what is refused."""

import pytest

pytest.register_assert_rewrite("tests.data.files.made")  # so that a failure shows the words
