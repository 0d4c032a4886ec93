"""Bad input, wherever it can come in: one line that says what was wrong and what is accepted.

Tables, a door each. On the command line a case is an exit status of 2 and one line on stderr, and
nothing left on disk; in the library it is an InputError. Beside them, what is odd but harmless is
accepted, with the same result. Files of images and archives have their tables in
``tests/data/files``.
"""

import pytest

pytest.register_assert_rewrite("tests.bad_input.refusal")  # so that a failure shows the words
